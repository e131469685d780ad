/* An external delegate for tests: it takes ABS nodes of float32 and fails as its option `mode` says.
 *
 * The declarations below are our own, of the public C ABI of TensorFlow Lite that ai-edge-litert 2.3 and
 * tflite-runtime 2.14 share. Structs that the runtime allocates end where we stop reading; those that we hand over are
 * whole, with room to spare. Tensors lie in an array, so TfLiteTensor has its full size.
 *
 * modes: real, nothing, create, prepare, invoke, segfault, abort, hang, wrong, leak (64 MiB an inference), seep (8 KiB an
 * inference), slow (20 ms an inference); and *_late, which does in invoke what segfault, abort and hang do in create.
 * With the option `fault`, the path of a file, the mode in invoke is what the file holds while it is there. With the
 * option `needs` there is no device unless the file of that name begins with "operating", as an FPGA's state does.
 */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, ERROR = 1 };
enum { BUILTIN_ABS = 101 };

typedef struct {
  int size;
  int data[];
} IntArray;

typedef struct {
  int type;
  void *data;
  IntArray *dims;
  float scale;
  int32_t zero_point;
  int allocation_type;
  size_t bytes;
  const void *allocation;
  const char *name;
  void *delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  int quantization_type;
  void *quantization_params;
  void *sparsity;
  const IntArray *dims_signature;
} Tensor;

typedef struct {
  IntArray *inputs;
  IntArray *outputs;
  IntArray *intermediates;
  IntArray *temporaries;
  void *user_data;
} Node;

typedef struct Context Context;
typedef struct Delegate Delegate;

typedef struct {
  void *(*init)(Context *, const char *, size_t);
  void (*free)(Context *, void *);
  int (*prepare)(Context *, Node *);
  int (*invoke)(Context *, Node *);
  const char *(*profiling_string)(const Context *, const Node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *operator;
  void *async_kernel;
  uint64_t inplace_operator;
  void *spare[4];
} Registration;

struct Context {
  size_t tensors_size;
  int (*GetExecutionPlan)(Context *, IntArray **);
  Tensor *tensors;
  void *impl;
  void *ResizeTensor;
  void (*ReportError)(Context *, const char *, ...);
  void *AddTensors;
  int (*GetNodeAndRegistration)(Context *, int, Node **, Registration **);
  int (*ReplaceNodeSubsetsWithDelegateKernels)(Context *, Registration, const IntArray *, Delegate *);
};

struct Delegate {
  void *data;
  int (*Prepare)(Context *, Delegate *);
  void *CopyFromBufferHandle;
  void *CopyToBufferHandle;
  void *FreeBufferHandle;
  int64_t flags;
  void *opaque_delegate_builder;
  void *spare[4];
};

static char mode[32] = "real", chosen[32] = "real";
static char fault[4096];
static void *volatile lost;

static bool is(const char *name) { return strcmp(mode, name) == 0; }

static void misbehave(const char *when) {
  char name[32];
  snprintf(name, sizeof name, "segfault%s", when);
  if (is(name)) *(volatile int *)8 = 1;
  snprintf(name, sizeof name, "abort%s", when);
  if (is(name)) {
    fprintf(stderr, "test delegate: assertion failed\n");
    abort();
  }
  snprintf(name, sizeof name, "hang%s", when);
  while (is(name)) pause();
}

static int kernel_prepare(Context *context, Node *node) {
  (void)context, (void)node;
  return OK;
}

/* Takes the mode from the file that a test writes and removes at any time. */
static void look_for_fault(void) {
  FILE *file = fault[0] ? fopen(fault, "r") : NULL;
  if (file == NULL || fscanf(file, "%31s", mode) != 1) memcpy(mode, chosen, sizeof mode);
  if (file != NULL) fclose(file);
}

static int kernel_invoke(Context *context, Node *node) {
  look_for_fault();
  misbehave("_late");
  if (is("invoke")) {
    context->ReportError(context, "test delegate: the device is gone");
    return ERROR;
  }
  if (is("leak")) {
    lost = malloc(64 << 20); /* counts against the limit of data untouched too, so the leak costs no time */
    if (lost == NULL) {
      fprintf(stderr, "test delegate: out of memory\n");
      abort();
    }
  }
  if (is("seep")) {
    lost = malloc(8 << 10);
    if (lost != NULL) memset((void *)lost, 1, 8 << 10); /* touched, or it would not be resident */
  }
  if (is("slow")) usleep(20000);
  const Tensor *output = &context->tensors[node->outputs->data[0]];
  const Tensor *input = &context->tensors[node->inputs->data[0]];
  const float *from = input->data;
  float *to = output->data;
  for (size_t i = 0; i < output->bytes / sizeof(float); i++) to[i] = is("wrong") ? -7 - fabsf(from[i]) : fabsf(from[i]);
  return OK;
}

static int delegate_prepare(Context *context, Delegate *delegate) {
  if (is("prepare")) {
    context->ReportError(context, "test delegate: this graph cannot be compiled");
    return ERROR;
  }
  if (is("nothing")) return OK;
  IntArray *plan;
  if (context->GetExecutionPlan(context, &plan) != OK) return ERROR;
  IntArray *mine = calloc(1, sizeof(IntArray) + plan->size * sizeof(int));
  for (int i = 0; i < plan->size; i++) {
    Node *node;
    Registration *registration;
    if (context->GetNodeAndRegistration(context, plan->data[i], &node, &registration) != OK) return ERROR;
    if (registration->builtin_code == BUILTIN_ABS) mine->data[mine->size++] = plan->data[i];
  }
  Registration kernel = {
      .prepare = kernel_prepare, .invoke = kernel_invoke, .custom_name = "TestDelegate", .version = 1};
  int status = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, mine, delegate);
  free(mine);
  return status;
}

static bool operates(const char *path) {
  char state[16] = "";
  FILE *file = fopen(path, "r");
  if (file == NULL) return false;
  bool yes = fgets(state, sizeof state, file) != NULL && strncmp(state, "operating", 9) == 0;
  fclose(file);
  return yes;
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
  bool ready = true;
  for (size_t i = 0; i < count; i++) {
    if (strcmp(keys[i], "needs") == 0) ready = operates(values[i]);
    if (strcmp(keys[i], "mode") == 0) snprintf(chosen, sizeof chosen, "%s", values[i]);
    if (strcmp(keys[i], "fault") == 0) snprintf(fault, sizeof fault, "%s", values[i]);
  }
  memcpy(mode, chosen, sizeof mode);
  misbehave("");
  if (is("create") || !ready) {
    report("test delegate: no device");
    return NULL;
  }
  Delegate *delegate = calloc(1, sizeof *delegate);
  delegate->Prepare = delegate_prepare;
  return delegate;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
