/* Preloaded into a process of the tests: while the file that FAULT_FLAG names exists, its first letter says what fails.
 * s: fsync and fdatasync, with EIO. Writes to a RocksDB log: w with EIO, r with EROFS, h short, down to the last byte,
 * and that one with EIO, so that a torn record lies there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fails(char what)
{
    const char *path = getenv("FAULT_FLAG");
    char found = 0;
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    if (syscall(SYS_read, fd, &found, 1) != 1)
        found = 0;
    syscall(SYS_close, fd);
    return found == what;
}

static int is_log(int fd)
{
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, name, sizeof name - 1);
    return size > 4 && memcmp(name + size - 4, ".log", 4) == 0;
}

int fdatasync(int fd)
{
    if (fails('s')) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
    if (fails('s')) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

ssize_t write(int fd, const void *data, size_t size)
{
    if (is_log(fd)) {
        int half = fails('h');
        if (half && size > 1)
            size = size / 2;
        else if (half || fails('w') || fails('r')) {
            errno = fails('r') ? EROFS : EIO;
            return -1;
        }
    }
    return syscall(SYS_write, fd, data, size);
}
