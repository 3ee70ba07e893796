// Preloaded by faults.py: counts the file operations of a process on paths under a prefix, and lets the k-th fail or kills the
// process there. Armed by fault_arm(), through ctypes. Classes of operations: w writes, r reads, l takes locks.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <unistd.h>
#include <limits.h>

static int armed = 0, sticky = 0, action_errno = 0;
static long count = 0, target = -1;
static char under[PATH_MAX], action[32], classes[8] = "w";
static int log_fd = -1;
static __thread int busy = 0;

#define REAL(name) static __typeof__(name) *real = NULL; if (!real) real = (__typeof__(name)*)dlsym(RTLD_NEXT, #name)

static ssize_t raw_write(int fd, const void *b, size_t n) {
    static ssize_t (*w)(int, const void *, size_t) = NULL;
    if (!w) w = dlsym(RTLD_NEXT, "write");
    return w(fd, b, n);
}

static int errno_of(const char *name) {
    if (!strcmp(name, "ENOSPC")) return ENOSPC;
    if (!strcmp(name, "EIO")) return EIO;
    if (!strcmp(name, "EDQUOT")) return EDQUOT;
    if (!strcmp(name, "EACCES")) return EACCES;
    if (!strcmp(name, "EMFILE")) return EMFILE;
    if (!strcmp(name, "ESTALE")) return ESTALE;
    return 0;
}

// k < 0: only count. Actions: an errno's name (this operation fails), errno+"+" (this one and all after it), kill-before, kill-after,
// torn (a write does half, then SIGKILL; other operations: kill-before), short (a write does half, then ENOSPC)
void fault_arm(const char *prefix, long k, const char *what, const char *cls, int fd) {
    snprintf(under, sizeof under, "%s", prefix);
    target = k; count = 0;
    snprintf(action, sizeof action, "%s", what);
    snprintf(classes, sizeof classes, "%s", cls);
    size_t n = strlen(action);
    sticky = n && action[n - 1] == '+';
    if (sticky) action[n - 1] = 0;
    action_errno = errno_of(action);
    log_fd = fd;
    armed = 1;
}

static int resolve(int dirfd, const char *path, char *out) {
    char base[PATH_MAX];
    if (!path) return 0;
    if (path[0] == '/') { snprintf(out, PATH_MAX, "%s", path); return 1; }
    if (dirfd == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
    else {
        char link[64]; snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n < 0) return 0;
        base[n] = 0;
    }
    snprintf(out, PATH_MAX, "%s/%s", base, path);
    return 1;
}
static int inside(const char *path) { return !strncmp(path, under, strlen(under)); }

// Returns 0: go on; 1: fail with errno set; 2: do half of it then fail; 3: do half then die; 4: do it then die
static int check(char cls, const char *op, const char *path) {
    if (!armed || busy || !inside(path) || !strchr(classes, cls)) return 0;
    busy = 1;
    long me = __sync_fetch_and_add(&count, 1);
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int n = snprintf(line, sizeof line, "%ld\t%s\t%s\n", me, op, path);
        raw_write(log_fd, line, n);
    }
    int result = 0;
    if (me == target || (sticky && target >= 0 && me > target)) {
        if (!strcmp(action, "kill-before")) { kill(getpid(), SIGKILL); pause(); }
        else if (!strcmp(action, "kill-after")) result = 4;
        else if (!strcmp(action, "torn")) { if (!strcmp(op, "write")) result = 3; else { kill(getpid(), SIGKILL); pause(); } }
        else if (!strcmp(action, "short")) { if (!strcmp(op, "write")) result = 2; else { errno = ENOSPC; result = 1; } }
        else if (action_errno) {
            // a full disk lets one delete, rename, sync and open what is there
            if (sticky && action_errno == ENOSPC && (!strcmp(op, "unlink") || !strcmp(op, "rmdir") || !strcmp(op, "rename") || !strcmp(op, "fsync") || !strcmp(op, "lock"))) result = 0;
            else { errno = action_errno; result = 1; }
        }
    }
    busy = 0;
    return result;
}
static int check_at(char cls, const char *op, int dirfd, const char *path) {
    if (!armed || busy) return 0;
    char full[PATH_MAX];
    return resolve(dirfd, path, full) ? check(cls, op, full) : 0;
}
static int check_fd(char cls, const char *op, int fd) {
    if (!armed || busy || fd < 0) return 0;
    char link[64], full[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, full, sizeof full - 1);
    if (n <= 0) return 0;
    full[n] = 0;
    return check(cls, op, full);
}
static void die(void) { kill(getpid(), SIGKILL); pause(); }
#define AFTER(v, r) do { if ((v) == 4) die(); return r; } while (0)

static char open_class(int flags) { return (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) ? 'w' : 'r'; }

#define OPEN_BODY(call) \
    mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); } \
    int v = check_at(open_class(flags), "open", dirfd, path); \
    if (v == 1) return -1; \
    int r = call; AFTER(v, r);

int open(const char *path, int flags, ...) { REAL(open); int dirfd = AT_FDCWD; OPEN_BODY(real(path, flags, mode)) }
int open64(const char *path, int flags, ...) { REAL(open64); int dirfd = AT_FDCWD; OPEN_BODY(real(path, flags, mode)) }
int openat(int dirfd, const char *path, int flags, ...) { REAL(openat); OPEN_BODY(real(dirfd, path, flags, mode)) }
int openat64(int dirfd, const char *path, int flags, ...) { REAL(openat64); OPEN_BODY(real(dirfd, path, flags, mode)) }

ssize_t write(int fd, const void *buf, size_t n) {
    REAL(write);
    int v = check_fd('w', "write", fd);
    if (v == 1) return -1;
    if (v == 2 || v == 3) { if (n > 1) real(fd, buf, n / 2); if (v == 3) die(); errno = ENOSPC; return -1; }
    ssize_t r = real(fd, buf, n); AFTER(v, r);
}
ssize_t read(int fd, void *buf, size_t n) {
    REAL(read);
    int v = check_fd('r', "read", fd);
    if (v == 1) return -1;
    ssize_t r = real(fd, buf, n); AFTER(v, r);
}
size_t fwrite(const void *buf, size_t size, size_t n, FILE *f) {
    REAL(fwrite);
    int v = (size * n > 512) ? check_fd('w', "write", fileno(f)) : 0;
    if (v == 1) return 0;
    if (v == 2 || v == 3) { real(buf, size, n / 2, f); fflush(f); if (v == 3) die(); errno = ENOSPC; return n / 2; }
    size_t r = real(buf, size, n, f); if (v == 4) { fflush(f); die(); } return r;
}
#define FD_OP(name, op) int name(int fd) { REAL(name); int v = check_fd('w', op, fd); if (v == 1) return -1; int r = real(fd); AFTER(v, r); }
FD_OP(fsync, "fsync")
FD_OP(fdatasync, "fsync")
int flock(int fd, int how) { REAL(flock); int v = check_fd('l', "lock", fd); if (v == 1) return -1; int r = real(fd, how); AFTER(v, r); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); int v = check_fd('w', "truncate", fd); if (v == 1) return -1; int r = real(fd, n); AFTER(v, r); }
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); int v = check_fd('w', "truncate", fd); if (v == 1) return -1; int r = real(fd, n); AFTER(v, r); }
int rename(const char *a, const char *b) {
    REAL(rename);
    char full[2 * PATH_MAX + 8], x[PATH_MAX], y[PATH_MAX]; int v = 0;
    if (armed && resolve(AT_FDCWD, a, x) && resolve(AT_FDCWD, b, y)) { snprintf(full, sizeof full, "%s -> %s", x, y); v = check('w', "rename", full); }
    if (v == 1) return -1;
    int r = real(a, b); AFTER(v, r);
}
int mkdir(const char *path, mode_t m) { REAL(mkdir); int v = check_at('w', "mkdir", AT_FDCWD, path); if (v == 1) return -1; int r = real(path, m); AFTER(v, r); }
int unlink(const char *path) { REAL(unlink); int v = check_at('w', "unlink", AT_FDCWD, path); if (v == 1) return -1; int r = real(path); AFTER(v, r); }
int rmdir(const char *path) { REAL(rmdir); int v = check_at('w', "rmdir", AT_FDCWD, path); if (v == 1) return -1; int r = real(path); AFTER(v, r); }
int unlinkat(int d, const char *path, int f) { REAL(unlinkat); int v = check_at('w', f & AT_REMOVEDIR ? "rmdir" : "unlink", d, path); if (v == 1) return -1; int r = real(d, path, f); AFTER(v, r); }
