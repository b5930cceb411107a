/* Lets one system call of a process fail, or every read be short. Loaded with LD_PRELOAD by
   benchmarks/faulty_calls.py, which calls `fault`. Only files below one of the folders count. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

static char kind[32], folders[4 * PATH_MAX];
static int error;
static atomic_long *calls; /* shared with the processes that are forked */
static long failing;

/* The kind of call ("" for none), which one of them fails (0: none), with which error, and the
   folders, each with a colon behind it. */
void fault(const char *which, long number, int with, const char *below) {
    if (!calls)
        calls = mmap(NULL, sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snprintf(folders, sizeof folders, "%s", below);
    failing = number;
    error = with;
    atomic_store(calls, 0);
    snprintf(kind, sizeof kind, "%s", which);
}

long fault_calls(void) { return calls ? atomic_load(calls) : 0; }

static int below(const char *path) {
    for (const char *start = folders, *end; (end = strchr(start, ':')); start = end + 1)
        if (!strncmp(path, start, end - start)) return 1;
    return 0;
}

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return below(path);
}

static int fails(const char *call) {
    if (strcmp(kind, call) || atomic_fetch_add(calls, 1) + 1 != failing) return 0;
    errno = error;
    return 1;
}

static int is(const char *call) { return !strcmp(kind, call); }

/* A part of a read; of one past the page cache whole pages. */
static size_t some(int fd, size_t count) {
    if (!is("short") || count < 2 || !below_fd(fd)) return count;
    atomic_fetch_add(calls, 1);
    size_t less = count * 5 / 8;
    if (fcntl(fd, F_GETFL) & O_DIRECT) less = less / 4096 * 4096;
    return less ? less : count;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define FAIL_FD(call, fd) if (is(call) && below_fd(fd) && fails(call)) return -1
#define FAIL_PATH(call, path) if (is(call) && below(path) && fails(call)) return -1

ssize_t read(int fd, void *buffer, size_t count) {
    REAL(read);
    FAIL_FD("read", fd);
    return real(fd, buffer, some(fd, count));
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t at) {
    REAL(pread64);
    FAIL_FD("read", fd);
    return real(fd, buffer, some(fd, count), at);
}

ssize_t preadv64(int fd, const struct iovec *parts, int number, off64_t at) {
    REAL(preadv64);
    FAIL_FD("read", fd);
    if (number != 1) return real(fd, parts, number, at);
    struct iovec part = {parts->iov_base, some(fd, parts->iov_len)};
    return real(fd, &part, 1, at);
}

ssize_t preadv64v2(int fd, const struct iovec *parts, int number, off64_t at, int flags) {
    REAL(preadv64v2);
    if (flags) return real(fd, parts, number, at, flags); /* only asks for what is cached */
    return preadv64(fd, parts, number, at);
}

ssize_t write(int fd, const void *buffer, size_t count) {
    REAL(write);
    FAIL_FD("write", fd);
    return real(fd, buffer, count);
}

ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t at) {
    REAL(pwrite64);
    FAIL_FD("write", fd);
    return real(fd, buffer, count, at);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int number, off64_t at) {
    REAL(pwritev64);
    FAIL_FD("write", fd);
    return real(fd, parts, number, at);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t count) {
    REAL(sendfile64);
    FAIL_FD("write", to);
    return real(to, from, at, some(from, count));
}

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *there, size_t count, unsigned how) {
    REAL(copy_file_range);
    FAIL_FD("write", to);
    return real(from, at, to, there, some(from, count), how);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    FAIL_FD("truncate", fd);
    return real(fd, size);
}

int fsync(int fd) {
    REAL(fsync);
    FAIL_FD("fsync", fd);
    return real(fd);
}

int close(int fd) {
    REAL(close);
    int bad = is("close") && below_fd(fd) && fails("close");
    int closed = real(fd);
    if (!bad) return closed;
    errno = error;
    return -1;
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    FAIL_PATH("open", path);
    return real(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    FAIL_PATH("mkdir", path);
    return real(path, mode);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    FAIL_PATH("rename", from);
    return real(from, to);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    REAL(renameat2);
    FAIL_PATH("rename", old);
    return real(from, old, to, new, flags);
}

int unlink(const char *path) {
    REAL(unlink);
    FAIL_PATH("unlink", path);
    return real(path);
}

int unlinkat(int fd, const char *path, int flags) {
    REAL(unlinkat);
    FAIL_FD("unlink", fd);
    return real(fd, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir);
    FAIL_PATH("unlink", path);
    return real(path);
}
