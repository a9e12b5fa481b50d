/* A disk that fails on command: preloaded, it stands between a process and the C library, so that what Python, Rust
   (safetensors), C++ (torch) and SQLite do to files below one folder is counted alike, and stopped at one operation.

   An operation makes, writes, syncs, renames or removes; reads are counted apart. What goes through a memory map is not
   seen here: for that there is a small tmpfs. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_HALF, KILL_AFTER, STOP, FAIL_ONCE, FAIL_ON, FULL, FAIL_READ, CLOCK };

static char root[PATH_MAX];
static size_t root_size;
static int action, error_number;
static long at;
static atomic_long operations, reads, bytes, offset;
static atomic_int armed;

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

void fault_arm(const char *folder, int what, long step, int number) {
    strncpy(root, folder, sizeof root - 1);
    root_size = strlen(root);
    action = what; at = step; error_number = number;
    operations = reads = bytes = offset = 0;
    armed = 1;
}
void fault_counts(long *out) { out[0] = operations; out[1] = reads; out[2] = bytes; }

static int below(const char *path) {
    char whole[PATH_MAX];
    if (!armed || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(whole, sizeof whole)) return 0;
        strncat(whole, "/", sizeof whole - strlen(whole) - 1);
        strncat(whole, path, sizeof whole - strlen(whole) - 1);
        path = whole;
    }
    return !strncmp(path, root, root_size) && (path[root_size] == '/' || !path[root_size]);
}
static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return below(path);
}

/* Whether the next operation is the one; -1 where it must fail. */
static int begin(void) {
    long number = ++operations;
    if (action == CLOCK && number == at) offset = -3600;
    if ((action == FAIL_ONCE && number == at) || (action == FAIL_ON && number >= at)) { errno = error_number; return -1; }
    if (number != at) return 0;
    if (action == KILL_BEFORE) { kill(getpid(), SIGKILL); pause(); }
    if (action == STOP) kill(getpid(), SIGSTOP);
    return 1;
}
static void end(int here) {
    if (here == 1 && (action == KILL_AFTER || action == KILL_HALF)) { int kept = errno; kill(getpid(), SIGKILL); pause(); errno = kept; }
}
/* How many of `size` bytes may be written now: fewer on a disk that is full, or by who is killed half-way. */
static ssize_t room(size_t size, int here) {
    if (here == 1 && action == KILL_HALF) return (ssize_t)(size / 2);
    if (action != FULL) { bytes += (long)size; return (ssize_t)size; }
    long before = atomic_fetch_add(&bytes, (long)size), left = at - before;
    if (left >= (long)size) return (ssize_t)size;
    bytes = at;
    if (left > 0) return left;
    errno = error_number;
    return -1;
}
#define OPERATION(inside, call) do { \
    if (!(inside)) return call; \
    int here = begin(); if (here < 0) return -1; \
    long result_ = call; end(here); return result_; } while (0)
#define WRITING(size, call, allowed) do { \
    if (!below_fd(fd)) { size_t allowed = size; return call; } \
    int here = begin(); if (here < 0) return -1; \
    ssize_t allowed = room(size, here); if (allowed < 0) return -1; \
    ssize_t result_ = call; end(here); return result_; } while (0)
#define READING(call) do { \
    if (below_fd(fd) && ++reads == at && action == FAIL_READ) { errno = EIO; return -1; } \
    return call; } while (0)

#define OPEN(name) int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
    OPERATION((flags & (O_CREAT | O_TRUNC)) && below(path), real(path, flags, mode)); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
    REAL(int, #name, int, const char *, int, ...); \
    va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
    OPERATION((flags & (O_CREAT | O_TRUNC)) && below(path), real(folder, path, flags, mode)); }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) FILE *name(const char *path, const char *mode) { \
    REAL(FILE *, #name, const char *, const char *); \
    if (mode[0] != 'w' || !below(path)) return real(path, mode); \
    int here = begin(); if (here < 0) return NULL; \
    FILE *file = real(path, mode); end(here); return file; }
FOPEN(fopen)
FOPEN(fopen64)
ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    WRITING(size, real(fd, data, (size_t)n), n);
}
#define PWRITE(name, type) ssize_t name(int fd, const void *data, size_t size, type place) { \
    REAL(ssize_t, #name, int, const void *, size_t, type); \
    WRITING(size, real(fd, data, (size_t)n, place), n); }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (!below_fd(fd)) return real(fd, parts, count);
    return count ? write(fd, parts[0].iov_base, parts[0].iov_len) : 0;  /* a short write, as the system may make */
}
ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    READING(real(fd, data, size));
}
#define PREAD(name, type) ssize_t name(int fd, void *data, size_t size, type place) { \
    REAL(ssize_t, #name, int, void *, size_t, type); \
    READING(real(fd, data, size, place)); }
PREAD(pread, off_t)
PREAD(pread64, off64_t)
int fsync(int fd) { REAL(int, "fsync", int); OPERATION(below_fd(fd), real(fd)); }
int fdatasync(int fd) { REAL(int, "fdatasync", int); OPERATION(below_fd(fd), real(fd)); }
int ftruncate(int fd, off_t size) { REAL(int, "ftruncate", int, off_t); OPERATION(below_fd(fd), real(fd, size)); }
int ftruncate64(int fd, off64_t size) { REAL(int, "ftruncate64", int, off64_t); OPERATION(below_fd(fd), real(fd, size)); }
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    OPERATION(below(to), real(from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    OPERATION(below(to), real(a, from, b, to));
}
int unlink(const char *path) { REAL(int, "unlink", const char *); OPERATION(below(path), real(path)); }
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    OPERATION(below(path) || below_fd(folder), real(folder, path, flags));
}
int mkdir(const char *path, mode_t mode) { REAL(int, "mkdir", const char *, mode_t); OPERATION(below(path), real(path, mode)); }
int clock_gettime(clockid_t which, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int result = real(which, now);
    if (armed && action == CLOCK && which == CLOCK_REALTIME) now->tv_sec += offset;
    return result;
}
