/* Counts, logs, kills at and fails the calls of this process that touch files below one folder. LD_PRELOADed.
 *
 * Unarmed (always, until shim_begin) every call goes to libc. Armed, each call below the folder gets the next number,
 * from 0; the plan says at which number the process kills itself on entry, and which numbers fail with which errno.
 * What was called is written to a log: a struct record, two paths, and, when asked for, what was written. For one
 * thread only, and for absolute paths: shim.py checks against strace that this sees every call that changes the disk.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { OPEN, WRITE, PWRITE, RENAME, FSYNC, FDATASYNC, UNLINK, RMDIR, FTRUNCATE, MKDIR, SYMLINK, LINK, READ, PREAD };
enum intent { LOOKS, WRITES, CREATES }; /* of an OPEN */

struct record { /* as shim.py unpacks it */
  uint8_t kind, intent;
  uint16_t path_bytes, other_bytes;
  int32_t result; /* as the call returned; minus errno when it failed; -9999: killed on entry */
  int32_t file;
  uint32_t data_bytes;
  int64_t offset; /* of a PWRITE; the length of a FTRUNCATE; where a WRITE began */
  int64_t size;
};

static struct {
  int armed, log, with_data, forgiving;
  char root[PATH_MAX];
  size_t root_bytes;
  int64_t number, kill_at, fail_from, fail_to, tear_at;
  int error;
  uint32_t failing;  /* one bit a kind */
  int failing_opens; /* the least intent of an OPEN that fails */
  int64_t failed; /* calls that would change the disk */
  char failing_root[PATH_MAX];
} now;

enum { FILES = 4096 };
enum whose { NOT_OURS, OURS, FAILING };
static uint8_t ours[FILES]; /* a whose, by descriptor */

#define LIBC(name, type) ((type)dlsym(RTLD_NEXT, name))

void shim_begin(const char *root, int log, int with_data) {
  memset(&now, 0, sizeof now);
  now.kill_at = now.fail_from = now.tear_at = -1;
  now.log = log;
  now.with_data = with_data;
  now.root_bytes = strlen(root);
  memcpy(now.root, root, now.root_bytes + 1);
  now.armed = now.root_bytes < PATH_MAX;
}

void shim_kill_at(int64_t number) { now.kill_at = number; }

void shim_tear_at(int64_t number) { now.tear_at = number; }

void shim_fail(int64_t from, int64_t to, int error, uint32_t kinds, int opens) {
  now.fail_from = from, now.fail_to = to, now.error = error, now.failing = kinds, now.failing_opens = opens;
}

void shim_fail_below(const char *root) {
  if (strlen(root) < PATH_MAX) strcpy(now.failing_root, root);
}

void shim_forgive(int forgiving) { now.forgiving = forgiving; }

int64_t shim_count(void) { return now.number; }

int64_t shim_failed(void) { return now.failed; }

void shim_end(void) { now.armed = 0; }

static int below(const char *path) {
  return now.armed && path != NULL && strncmp(path, now.root, now.root_bytes) == 0 &&
         (path[now.root_bytes] == '/' || path[now.root_bytes] == 0);
}

static int is_failing(const char *path) {
  size_t length = strlen(now.failing_root);
  return path != NULL && strncmp(path, now.failing_root, length) == 0;
}

static int is_ours(int file) { return now.armed && file >= 0 && file < FILES && ours[file]; }

static void put(const void *data, size_t size) {
  const char *rest = data;
  while (size > 0) {
    long done = syscall(SYS_write, now.log, rest, size);
    if (done <= 0) return;
    rest += done, size -= (size_t)done;
  }
}

struct call {
  enum kind kind;
  enum intent intent;
  const char *path, *other;
  int file;
  const void *data;
  size_t size;
  int64_t offset;
};

static void note(const struct call *call, long result) {
  int error = errno;
  int wrote = (call->kind == WRITE || call->kind == PWRITE) && result > 0 && now.with_data;
  struct record record = {
      .kind = (uint8_t)call->kind,
      .intent = (uint8_t)call->intent,
      .path_bytes = (uint16_t)(call->path == NULL ? 0 : strlen(call->path)),
      .other_bytes = (uint16_t)(call->other == NULL ? 0 : strlen(call->other)),
      .result = (int32_t)(result == -1 ? -error : result),
      .file = call->file,
      .data_bytes = wrote ? (uint32_t)result : 0,
      .offset = call->offset,
      .size = (int64_t)call->size,
  };
  put(&record, sizeof record);
  put(call->path, record.path_bytes);
  put(call->other, record.other_bytes);
  put(call->data, record.data_bytes);
  errno = error;
}

/* Gives the call its number; returns the errno with which it shall fail, or 0. */
static int enter(const struct call *call) {
  int64_t number = now.number++;
  if (number == now.kill_at) {
    note(call, -9999);
    syscall(SYS_kill, getpid(), SIGKILL);
  }
  int due = now.fail_from >= 0 && number >= now.fail_from && number < now.fail_to;
  if (!due || now.forgiving || !(now.failing >> call->kind & 1)) return 0;
  if (call->kind == OPEN && (int)call->intent < now.failing_opens) return 0;
  const char *made = call->other != NULL ? call->other : call->path;
  if (call->file >= 0 ? ours[call->file] != FAILING : !is_failing(made)) return 0;
  now.failed += call->kind != READ && call->kind != PREAD && (call->kind != OPEN || call->intent != LOOKS);
  return now.error;
}

static long fail(const struct call *call, int error) {
  errno = error;
  note(call, -1);
  return -1;
}

/* Makes the call of libc unless the plan fails it. */
#define PERFORM(call, expression)                              \
  do {                                                         \
    int error_ = enter(&(call));                               \
    if (error_) return fail(&(call), error_);                  \
    long result_ = (expression);                               \
    note(&(call), result_);                                    \
    return result_;                                            \
  } while (0)

static int opened(const char *path, int flags, mode_t mode) {
  int (*libc)(int, const char *, int, ...) = LIBC("openat", int (*)(int, const char *, int, ...));
  if (!below(path)) {
    int file = libc(AT_FDCWD, path, flags, mode);
    if (file >= 0 && file < FILES) ours[file] = NOT_OURS;
    return file;
  }
  int absent = flags & O_CREAT && syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0;
  enum intent intent = absent || flags & O_TRUNC ? CREATES : flags & (O_WRONLY | O_RDWR) ? WRITES : LOOKS;
  struct call call = {OPEN, intent, path, NULL, -1, NULL, (size_t)!!(flags & O_TRUNC), 0};
  int error = enter(&call);
  if (error) return (int)fail(&call, error);
  int file = libc(AT_FDCWD, path, flags, mode);
  if (file >= 0 && file < FILES) ours[file] = is_failing(path) ? FAILING : OURS;
  note(&call, file);
  return file;
}

#define MODE(flags, last)                     \
  mode_t mode = 0;                            \
  if ((flags) & (O_CREAT | O_TMPFILE)) {      \
    va_list more;                             \
    va_start(more, last);                     \
    mode = (mode_t)va_arg(more, unsigned);    \
    va_end(more);                             \
  }

int open(const char *path, int flags, ...) {
  MODE(flags, flags)
  return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  MODE(flags, flags)
  return opened(path, flags, mode);
}

static int opened_at(int folder, const char *path, int flags, mode_t mode) {
  if (folder == AT_FDCWD || path[0] == '/') return opened(path, flags, mode);
  return LIBC("openat", int (*)(int, const char *, int, ...))(folder, path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
  MODE(flags, flags)
  return opened_at(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
  MODE(flags, flags)
  return opened_at(folder, path, flags, mode);
}

int close(int file) {
  if (file >= 0 && file < FILES) ours[file] = NOT_OURS;
  return LIBC("close", int (*)(int))(file);
}

ssize_t write(int file, const void *data, size_t size) {
  ssize_t (*libc)(int, const void *, size_t) = LIBC("write", ssize_t(*)(int, const void *, size_t));
  if (!is_ours(file)) return libc(file, data, size);
  struct call call = {WRITE, LOOKS, NULL, NULL, file, data, size, lseek(file, 0, SEEK_CUR)};
  size_t done = now.number == now.tear_at && size > 1 ? size / 2 : size;
  PERFORM(call, libc(file, data, done));
}

static ssize_t written_at(int file, const void *data, size_t size, off_t offset) {
  ssize_t (*libc)(int, const void *, size_t, off_t) =
      LIBC("pwrite64", ssize_t(*)(int, const void *, size_t, off_t));
  if (!is_ours(file)) return libc(file, data, size, offset);
  struct call call = {PWRITE, LOOKS, NULL, NULL, file, data, size, offset};
  size_t done = now.number == now.tear_at && size > 1 ? size / 2 : size;
  PERFORM(call, libc(file, data, done, offset));
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset) { return written_at(file, data, size, offset); }

ssize_t pwrite64(int file, const void *data, size_t size, off_t offset) {
  return written_at(file, data, size, offset);
}

ssize_t read(int file, void *data, size_t size) {
  ssize_t (*libc)(int, void *, size_t) = LIBC("read", ssize_t(*)(int, void *, size_t));
  if (!is_ours(file)) return libc(file, data, size);
  struct call call = {READ, LOOKS, NULL, NULL, file, NULL, size, 0};
  PERFORM(call, libc(file, data, size));
}

static ssize_t read_at(int file, void *data, size_t size, off_t offset) {
  ssize_t (*libc)(int, void *, size_t, off_t) = LIBC("pread64", ssize_t(*)(int, void *, size_t, off_t));
  if (!is_ours(file)) return libc(file, data, size, offset);
  struct call call = {PREAD, LOOKS, NULL, NULL, file, NULL, size, offset};
  PERFORM(call, libc(file, data, size, offset));
}

ssize_t pread(int file, void *data, size_t size, off_t offset) { return read_at(file, data, size, offset); }

ssize_t pread64(int file, void *data, size_t size, off_t offset) { return read_at(file, data, size, offset); }

#define ON_FILE(name, KIND)                                          \
  int name(int file) {                                               \
    int (*libc)(int) = LIBC(#name, int (*)(int));                    \
    if (!is_ours(file)) return libc(file);                           \
    struct call call = {KIND, LOOKS, NULL, NULL, file, NULL, 0, 0};  \
    PERFORM(call, libc(file));                                       \
  }

ON_FILE(fsync, FSYNC)
ON_FILE(fdatasync, FDATASYNC)

static int truncated(int file, off_t size) {
  int (*libc)(int, off_t) = LIBC("ftruncate64", int (*)(int, off_t));
  if (!is_ours(file)) return libc(file, size);
  struct call call = {FTRUNCATE, LOOKS, NULL, NULL, file, NULL, 0, size};
  PERFORM(call, libc(file, size));
}

int ftruncate(int file, off_t size) { return truncated(file, size); }

int ftruncate64(int file, off_t size) { return truncated(file, size); }

#define ON_PATH(name, KIND)                                           \
  int name(const char *path) {                                        \
    int (*libc)(const char *) = LIBC(#name, int (*)(const char *));   \
    if (!below(path)) return libc(path);                              \
    struct call call = {KIND, LOOKS, path, NULL, -1, NULL, 0, 0};     \
    PERFORM(call, libc(path));                                        \
  }

ON_PATH(unlink, UNLINK)
ON_PATH(rmdir, RMDIR)

int mkdir(const char *path, mode_t mode) {
  int (*libc)(const char *, mode_t) = LIBC("mkdir", int (*)(const char *, mode_t));
  if (!below(path)) return libc(path, mode);
  struct call call = {MKDIR, LOOKS, path, NULL, -1, NULL, 0, 0};
  PERFORM(call, libc(path, mode));
}

#define ON_PATHS(name, KIND, watched)                                                       \
  int name(const char *path, const char *other) {                                           \
    int (*libc)(const char *, const char *) = LIBC(#name, int (*)(const char *, const char *)); \
    if (!below(watched)) return libc(path, other);                                          \
    struct call call = {KIND, LOOKS, path, other, -1, NULL, 0, 0};                          \
    PERFORM(call, libc(path, other));                                                       \
  }

ON_PATHS(rename, RENAME, other)
ON_PATHS(link, LINK, other)
ON_PATHS(symlink, SYMLINK, other)
