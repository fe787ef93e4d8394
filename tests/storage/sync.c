/*
 * A disk that counts its fsyncs, and that fails when it is told to. Preloaded into a process of a test.
 *
 * SYNC_TARGET: the name of the file that it is about. SYNC_COUNT: a file to which each fsync of it adds a byte.
 * SYNC_FAIL: while a file of this name exists, an fsync fails with EIO.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_target(int descriptor)
{
    const char *target = getenv("SYNC_TARGET");
    char link[64], path[PATH_MAX];

    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (target == NULL || length < 0)
        return 0;
    path[length] = '\0';
    const char *name = strrchr(path, '/');
    return name != NULL && strcmp(name + 1, target) == 0;
}

static int sync_with(const char *call, int descriptor)
{
    if (is_target(descriptor)) {
        const char *fail = getenv("SYNC_FAIL"), *count = getenv("SYNC_COUNT");
        if (fail != NULL && access(fail, F_OK) == 0) {
            errno = EIO;
            return -1;
        }
        if (count != NULL) {
            int counter = open(count, O_WRONLY | O_CREAT | O_APPEND, 0644);
            if (counter >= 0) {
                if (write(counter, ".", 1) != 1)
                    abort();
                close(counter);
            }
        }
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, call);
    return real(descriptor);
}

int fsync(int descriptor)
{
    return sync_with("fsync", descriptor);
}

int fdatasync(int descriptor)
{
    return sync_with("fdatasync", descriptor);
}
