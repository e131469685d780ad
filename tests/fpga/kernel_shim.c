/* Sends writes, mkdir and rmdir below an emulated /sys to the emulator, as the kernel would take them. LD_PRELOADed.
 *
 * Each call is one message, "OP\0PATH\0TEXT", over a unix SEQPACKET socket; the answer is an errno, or 0. Everything
 * else goes to libc. The emulator and its folder are named by REGATTA_FPGA_SOCKET and REGATTA_FPGA_SYS.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int below_sys(const char *path) {
  const char *sys = getenv("REGATTA_FPGA_SYS");
  size_t length = sys == NULL ? 0 : strlen(sys);
  return length > 0 && strncmp(path, sys, length) == 0 && path[length] == '/';
}

static int ask(const char *op, const char *path, const char *text, size_t size) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char message[PATH_MAX + 1024];
  int32_t answer = EIO;
  snprintf(address.sun_path, sizeof address.sun_path, "%s", getenv("REGATTA_FPGA_SOCKET"));
  int length = snprintf(message, sizeof message, "%s%c%s%c%.*s", op, 0, path, 0, (int)size, text);
  int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (length < (int)sizeof message && connect(connection, (struct sockaddr *)&address, sizeof address) == 0 &&
      send(connection, message, length, 0) == length)
    if (recv(connection, &answer, sizeof answer, 0) != sizeof answer) answer = EIO;
  close(connection);
  errno = answer;
  return answer == 0 ? 0 : -1;
}

ssize_t write(int file, const void *data, size_t size) {
  ssize_t (*libc)(int, const void *, size_t) = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  int before = errno;
  ssize_t length = getenv("REGATTA_FPGA_SYS") == NULL ? -1 : readlink(link, path, sizeof path - 1);
  errno = before;
  if (length < 0) return libc(file, data, size);
  path[length] = 0;
  if (!below_sys(path)) return libc(file, data, size);
  return ask("write", path, data, size) == 0 ? (ssize_t)size : -1;
}

int mkdir(const char *path, mode_t mode) {
  if (below_sys(path)) return ask("make", path, "", 0);
  return ((int (*)(const char *, mode_t))dlsym(RTLD_NEXT, "mkdir"))(path, mode);
}

int rmdir(const char *path) {
  if (below_sys(path)) return ask("remove", path, "", 0);
  return ((int (*)(const char *))dlsym(RTLD_NEXT, "rmdir"))(path);
}
