/*
 * A disk that counts its fsyncs, and that fails when it is told to. Preloaded into a process of a test.
 *
 * DISK_TARGETS: the names of the files that it is about, with colons between. DISK_COUNT: a file to which each fsync of
 * them adds a byte. DISK_FAIL: while a file of this name exists, the calls that it names fail: it holds "sync", "read" or
 * "write", and the error number.
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
    const char *targets = getenv("DISK_TARGETS");
    char link[64], path[PATH_MAX];

    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (targets == NULL || length < 0)
        return 0;
    path[length] = '\0';
    const char *name = strrchr(path, '/');
    if (name == NULL)
        return 0;
    size_t size = strlen(++name);
    for (const char *at = targets; at != NULL; at = strchr(at, ':')) {
        at += *at == ':';
        if (strncmp(at, name, size) == 0 && (at[size] == ':' || at[size] == '\0'))
            return 1;
    }
    return 0;
}

/* Whether this call is to fail; then errno says how. */
static int fails(const char *call, int descriptor)
{
    const char *fail = getenv("DISK_FAIL");
    char word[16];
    int number;

    if (fail == NULL || access(fail, F_OK) != 0 || !is_target(descriptor))
        return 0;
    FILE *file = fopen(fail, "re");
    if (file == NULL)
        return 0;
    int found = fscanf(file, "%15s %d", word, &number) == 2 && strcmp(word, call) == 0;
    fclose(file);
    if (found)
        errno = number;
    return found;
}

static int sync_with(const char *call, int descriptor)
{
    if (fails("sync", descriptor))
        return -1;
    const char *count = getenv("DISK_COUNT");
    if (count != NULL && is_target(descriptor)) {
        int counter = open(count, O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (counter >= 0) {
            ssize_t (*plain)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
            if (plain(counter, ".", 1) != 1)
                abort();
            close(counter);
        }
    }
    int (*real)(int) = dlsym(RTLD_NEXT, call);
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

#define SAME(call, name, buffer, offset)                                         \
    ssize_t name(int descriptor, buffer data, size_t size, offset at)            \
    {                                                                            \
        if (fails(call, descriptor))                                             \
            return -1;                                                           \
        ssize_t (*real)(int, buffer, size_t, offset) = dlsym(RTLD_NEXT, #name);  \
        return real(descriptor, data, size, at);                                 \
    }

SAME("read", pread, void *, off_t)
SAME("read", pread64, void *, off64_t)
SAME("write", pwrite, const void *, off_t)
SAME("write", pwrite64, const void *, off64_t)

ssize_t write(int descriptor, const void *data, size_t size)
{
    if (fails("write", descriptor))
        return -1;
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return real(descriptor, data, size);
}
