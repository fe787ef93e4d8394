/*
 * A witness of what a process does to the files of one directory, preloaded into it: every change and every sync goes
 * into a journal outside of that directory. From it `disk.py` works out what a disk might hold after a power cut.
 *
 * POWER_ROOT: the directory, as an absolute path without symbolic links. POWER_JOURNAL: the file to append to.
 *
 * The rules:
 *
 * 1. Calls are made as they are; the journal tells what they have done. A call and its record are under one lock, so
 *    that the order of the records is that of the changes. A sync has two records: what was done before the first one
 *    lasts from the second one on.
 * 2. A record is one write. A file is its inode number, which is told with its path whenever it is opened.
 * 3. What a stream (`FILE *`) writes is seen when it is flushed, synced or closed. Streams are taken to write from the
 *    beginning of a file to its end.
 * 4. What can't be followed is a record too, STRANGE: whoever reads the journal must not go on then. Memory that is
 *    mapped to be written is such a thing, but for SQLite's `-shm`, which is made anew by the first to open a database.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum operation {
    CREATE = 1, KNOW, WRITE, SIZE, GROW, SYNC_BEGIN, SYNC_END, RENAME, LINK, UNLINK, MKDIR, RMDIR, STRANGE
};
enum kind { NOTHING, REGULAR, STREAM, DIRECTORY };

#define DESCRIPTORS 65536
#define JOURNAL_AT 1000 /* the journal's descriptor is not below: programs have favourites among the low ones */
#define MOST_PARTS 1000 /* of one write */
#define PASSES(descriptor) \
    (journal < 0 || (descriptor) < 0 || (descriptor) >= DESCRIPTORS || watched[descriptor].kind == NOTHING)
#define IS_NAMELESS(flags) (((flags) & O_TMPFILE) == O_TMPFILE)

struct record {
    uint32_t operation, first, second, thread; /* bytes of a text and of another, or of data; who did it */
    uint64_t inode, at;
};

struct watched {
    enum kind kind;
    bool synced; /* O_SYNC: every write is */
    ino_t inode;
    off_t seen; /* of a stream: up to where it was written down */
};

static struct watched watched[DESCRIPTORS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int journal = -1;

static void __attribute__((constructor)) begin(void)
{
    const char *directory = getenv("POWER_ROOT"), *path = getenv("POWER_JOURNAL");
    if (directory == NULL || path == NULL || strlen(directory) >= sizeof root)
        return;
    strcpy(root, directory);
    root_length = strlen(root);
    int low = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    journal = (int)syscall(SYS_fcntl, low, F_DUPFD_CLOEXEC, JOURNAL_AT);
    syscall(SYS_close, low);
    if (journal < 0)
        abort();
}

static void put(enum operation operation, ino_t inode, off_t at, const char *text, const struct iovec *data, int count)
{
    struct record record = {.operation = operation, .inode = inode, .at = (uint64_t)at};
    struct iovec parts[MOST_PARTS + 2] = {{&record, sizeof record}, {(void *)text, strlen(text)}};
    int saved = errno;
    record.thread = (uint32_t)syscall(SYS_gettid);
    record.first = (uint32_t)parts[1].iov_len;
    for (int i = 0; i < count; i++) {
        parts[i + 2] = data[i];
        record.second += (uint32_t)data[i].iov_len;
    }
    if (syscall(SYS_writev, journal, parts, count + 2) != (ssize_t)(sizeof record + record.first + record.second))
        abort();
    errno = saved;
}

static void put_paths(enum operation operation, const char *first, const char *second)
{
    put(operation, 0, 0, first, &(struct iovec){(void *)second, strlen(second)}, 1);
}

static void strange(const char *what)
{
    put(STRANGE, 0, 0, what, NULL, 0);
}

/* -- names */

static bool is_inside(const char *path)
{
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == '\0');
}

/* The absolute path of what a descriptor stands for; false: it has none. */
static bool path_of(int descriptor, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0 || path[0] != '/')
        return false;
    path[length] = '\0';
    return true;
}

/* The absolute path of a name whose last part need not be there; false: it has none, or is not inside. */
static bool resolve(int at, const char *name, char *path)
{
    char whole[2 * PATH_MAX], parent[PATH_MAX], *last;
    int saved = errno;
    bool found = false;
    if (journal < 0 || name == NULL || strlen(name) >= PATH_MAX)
        return false;
    if (name[0] == '/')
        strcpy(whole, name);
    else if (at == AT_FDCWD ? getcwd(parent, sizeof parent) != NULL : path_of(at, parent))
        sprintf(whole, "%s/%s", parent, name);
    else
        whole[0] = '\0';
    for (size_t length = strlen(whole); length > 1 && whole[length - 1] == '/'; length--)
        whole[length - 1] = '\0';
    last = strrchr(whole, '/');
    if (last != NULL) {
        *last++ = '\0';
        found = realpath(whole[0] ? whole : "/", parent) != NULL && strlen(parent) + strlen(last) + 2 < PATH_MAX;
        if (found)
            stpcpy(stpcpy(stpcpy(path, parent), "/"), last);
    }
    errno = saved;
    return found && is_inside(path);
}

/* -- descriptors */

/* What is behind a descriptor, if it is watched. One that was closed unseen may stand for something else by now. */
static struct watched *find(int descriptor)
{
    struct stat status;
    if (fstat(descriptor, &status) == 0 && status.st_ino == watched[descriptor].inode && !S_ISSOCK(status.st_mode))
        return &watched[descriptor];
    watched[descriptor].kind = NOTHING;
    return NULL;
}

/* Something has been opened: watch it, where it is inside. `flags` are those of open(2). */
static void watch(int descriptor, int flags, bool is_new, enum kind kind)
{
    char path[PATH_MAX];
    struct stat status;
    int saved = errno;
    if (journal >= 0 && descriptor >= 0 && path_of(descriptor, path) && is_inside(path)
        && fstat(descriptor, &status) == 0) {
        if (descriptor >= DESCRIPTORS || IS_NAMELESS(flags)) {
            strange("a file without a name, or too many descriptors");
        } else if (S_ISDIR(status.st_mode)) {
            watched[descriptor] = (struct watched){.kind = DIRECTORY, .inode = status.st_ino};
        } else if (S_ISREG(status.st_mode)) {
            watched[descriptor] = (struct watched){kind, flags & O_DSYNC, status.st_ino, status.st_size};
            put(is_new ? CREATE : KNOW, status.st_ino, 0, path, NULL, 0);
            if (!is_new && flags & O_TRUNC)
                put(SIZE, status.st_ino, 0, "", NULL, 0);
        }
    }
    errno = saved;
}

static int open_at(int at, const char *name, int flags, mode_t mode)
{
    char path[PATH_MAX];
    struct stat status;
    if (!resolve(at, name, path))
        return (int)syscall(SYS_openat, at, name, flags, mode);
    pthread_mutex_lock(&lock);
    bool is_new = flags & O_CREAT && lstat(path, &status) < 0;
    int descriptor = (int)syscall(SYS_openat, at, name, flags, mode);
    watch(descriptor, flags, is_new, REGULAR);
    pthread_mutex_unlock(&lock);
    return descriptor;
}

#define TAKE_MODE                                   \
    mode_t mode = 0;                                \
    if (flags & O_CREAT || IS_NAMELESS(flags)) {    \
        va_list arguments;                          \
        va_start(arguments, flags);                 \
        mode = va_arg(arguments, mode_t);           \
        va_end(arguments);                          \
    }
#define OPEN(name)                                      \
    int name(const char *path, int flags, ...)          \
    {                                                   \
        TAKE_MODE                                       \
        return open_at(AT_FDCWD, path, flags, mode);    \
    }
#define OPENAT(name)                                    \
    int name(int at, const char *path, int flags, ...)  \
    {                                                   \
        TAKE_MODE                                       \
        return open_at(at, path, flags, mode);          \
    }
/* What a program calls that was compiled to check its calls. */
#define OPEN_CHECKED(name)                           \
    int name(const char *path, int flags)            \
    {                                                \
        return open_at(AT_FDCWD, path, flags, 0);    \
    }
#define OPENAT_CHECKED(name)                         \
    int name(int at, const char *path, int flags)    \
    {                                                \
        return open_at(at, path, flags, 0);          \
    }
#define CREAT(name)                                                                 \
    int name(const char *path, mode_t mode)                                         \
    {                                                                               \
        return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);         \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
OPEN_CHECKED(__open_2)
OPEN_CHECKED(__open64_2)
OPENAT_CHECKED(__openat_2)
OPENAT_CHECKED(__openat64_2)
CREAT(creat)
CREAT(creat64)

static int copied(int from, int to)
{
    if (to >= 0 && to < DESCRIPTORS && from >= 0 && from < DESCRIPTORS)
        watched[to] = watched[from];
    return to;
}

int dup(int from)
{
    return copied(from, (int)syscall(SYS_dup, from));
}

int dup2(int from, int to)
{
    if (from == to)
        return (int)syscall(SYS_fcntl, from, F_GETFD, 0) < 0 ? -1 : to;
    return copied(from, (int)syscall(SYS_dup3, from, to, 0));
}

int dup3(int from, int to, int flags)
{
    return copied(from, (int)syscall(SYS_dup3, from, to, flags));
}

#define FCNTL(name)                                                         \
    int name(int descriptor, int command, ...)                              \
    {                                                                       \
        va_list arguments;                                                  \
        va_start(arguments, command);                                       \
        long argument = va_arg(arguments, long);                            \
        va_end(arguments);                                                  \
        int result = (int)syscall(SYS_fcntl, descriptor, command, argument); \
        if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)               \
            copied(descriptor, result);                                     \
        return result;                                                      \
    }

FCNTL(fcntl)
FCNTL(fcntl64)

int close(int descriptor)
{
    if (descriptor >= 0 && descriptor == journal) {
        errno = EBADF;
        return -1;
    }
    if (descriptor >= 0 && descriptor < DESCRIPTORS)
        watched[descriptor].kind = NOTHING;
    return (int)syscall(SYS_close, descriptor);
}

/* -- writing */

static void put_sync(enum operation operation, const struct watched *file, const char *directory)
{
    put(operation, file->inode, 0, directory, NULL, 0);
}

static ssize_t write_parts(int descriptor, const struct iovec *data, int count, off_t at, int flags)
{
    struct iovec parts[MOST_PARTS];
    ssize_t written;
    pthread_mutex_lock(&lock);
    struct watched *file = find(descriptor);
    if (at < 0)
        written = syscall(SYS_writev, descriptor, data, count);
    else
        written = syscall(SYS_pwritev2, descriptor, data, count, at, 0, flags);
    if (file != NULL && written > 0) {
        size_t left = (size_t)written;
        int used = 0;
        if (count > MOST_PARTS)
            strange("a write of too many parts");
        for (; used < count && used < MOST_PARTS && left > 0; used++) {
            parts[used] = data[used];
            if (parts[used].iov_len > left)
                parts[used].iov_len = left;
            left -= parts[used].iov_len;
        }
        put(WRITE, file->inode, at < 0 ? lseek(descriptor, 0, SEEK_CUR) - written : at, "", parts, used);
        if (file->synced) {
            put_sync(SYNC_BEGIN, file, "");
            put_sync(SYNC_END, file, "");
        }
    }
    pthread_mutex_unlock(&lock);
    return written;
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    if (PASSES(descriptor))
        return syscall(SYS_write, descriptor, data, size);
    return write_parts(descriptor, &(struct iovec){(void *)data, size}, 1, -1, 0);
}

ssize_t writev(int descriptor, const struct iovec *data, int count)
{
    if (PASSES(descriptor))
        return syscall(SYS_writev, descriptor, data, count);
    return write_parts(descriptor, data, count, -1, 0);
}

#define PWRITE(name, offset)                                                            \
    ssize_t name(int descriptor, const void *data, size_t size, offset at)              \
    {                                                                                   \
        if (PASSES(descriptor))                                                         \
            return syscall(SYS_pwrite64, descriptor, data, size, at);                   \
        return write_parts(descriptor, &(struct iovec){(void *)data, size}, 1, at, 0);  \
    }
#define PWRITEV(name, offset)                                                           \
    ssize_t name(int descriptor, const struct iovec *data, int count, offset at)        \
    {                                                                                   \
        if (PASSES(descriptor))                                                         \
            return syscall(SYS_pwritev, descriptor, data, count, at, 0);                \
        return write_parts(descriptor, data, count, at, 0);                             \
    }
#define PWRITEV2(name, offset)                                                                 \
    ssize_t name(int descriptor, const struct iovec *data, int count, offset at, int flags)    \
    {                                                                                          \
        if (PASSES(descriptor))                                                                \
            return syscall(SYS_pwritev2, descriptor, data, count, at, 0, flags);               \
        return write_parts(descriptor, data, count, at, flags);                                \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)
PWRITEV2(pwritev2, off_t)
PWRITEV2(pwritev64v2, off64_t)

/* Write down what the file has from `at` to `end`. */
static void put_content(int descriptor, ino_t inode, off_t at, off_t end)
{
    static char buffer[1 << 16];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    int reader = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    while (at < end) {
        size_t size = end - at < (off_t)sizeof buffer ? (size_t)(end - at) : sizeof buffer;
        ssize_t length = pread(reader, buffer, size, at);
        if (length <= 0) {
            strange("a file that can't be read again");
            break;
        }
        put(WRITE, inode, at, "", &(struct iovec){buffer, (size_t)length}, 1);
        at += length;
    }
    syscall(SYS_close, reader);
}

#define SENDFILE(name, offset)                                                          \
    ssize_t name(int out, int in, offset *from, size_t size)                            \
    {                                                                                   \
        if (PASSES(out))                                                                \
            return syscall(SYS_sendfile, out, in, from, size);                          \
        pthread_mutex_lock(&lock);                                                      \
        struct watched *file = find(out);                                               \
        ssize_t length = syscall(SYS_sendfile, out, in, from, size);                    \
        off_t end = lseek(out, 0, SEEK_CUR);                                            \
        if (file != NULL && length > 0)                                                 \
            put_content(out, file->inode, end - length, end);                           \
        pthread_mutex_unlock(&lock);                                                    \
        return length;                                                                  \
    }

SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags)
{
    if (PASSES(out))
        return syscall(SYS_copy_file_range, in, from, out, to, size, flags);
    pthread_mutex_lock(&lock);
    struct watched *file = find(out);
    ssize_t length = syscall(SYS_copy_file_range, in, from, out, to, size, flags);
    off_t end = to != NULL ? *to : lseek(out, 0, SEEK_CUR);
    if (file != NULL && length > 0)
        put_content(out, file->inode, end - length, end);
    pthread_mutex_unlock(&lock);
    return length;
}

/* -- sizes */

static int truncate_file(int descriptor, off_t length)
{
    if (PASSES(descriptor))
        return (int)syscall(SYS_ftruncate, descriptor, length);
    pthread_mutex_lock(&lock);
    struct watched *file = find(descriptor);
    int result = (int)syscall(SYS_ftruncate, descriptor, length);
    if (file != NULL && result == 0)
        put(SIZE, file->inode, length, "", NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int descriptor, off_t length)
{
    return truncate_file(descriptor, length);
}

int ftruncate64(int descriptor, off64_t length)
{
    return truncate_file(descriptor, length);
}

static int truncate_path(const char *path, off_t length)
{
    int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0)
        return -1;
    int result = truncate_file(descriptor, length), saved = errno;
    close(descriptor);
    errno = saved;
    return result;
}

int truncate(const char *path, off_t length)
{
    return truncate_path(path, length);
}

int truncate64(const char *path, off64_t length)
{
    return truncate_path(path, length);
}

static int allocate(int descriptor, int mode, off_t at, off_t length)
{
    if (PASSES(descriptor))
        return (int)syscall(SYS_fallocate, descriptor, mode, at, length);
    pthread_mutex_lock(&lock);
    struct watched *file = find(descriptor);
    int result = (int)syscall(SYS_fallocate, descriptor, mode, at, length);
    if (file != NULL && result == 0 && mode == 0)
        put(GROW, file->inode, at + length, "", NULL, 0);
    else if (file != NULL && result == 0 && mode != FALLOC_FL_KEEP_SIZE)
        strange("a hole that is punched");
    pthread_mutex_unlock(&lock);
    return result;
}

int fallocate(int descriptor, int mode, off_t at, off_t length)
{
    return allocate(descriptor, mode, at, length);
}

int fallocate64(int descriptor, int mode, off64_t at, off64_t length)
{
    return allocate(descriptor, mode, at, length);
}

int posix_fallocate(int descriptor, off_t at, off_t length)
{
    int saved = errno, result = allocate(descriptor, 0, at, length) == 0 ? 0 : errno;
    errno = saved;
    return result;
}

int posix_fallocate64(int descriptor, off64_t at, off64_t length)
{
    return posix_fallocate(descriptor, at, length);
}

/* -- streams */

static void catch_up(int descriptor)
{
    struct watched *file;
    struct stat status;
    if (PASSES(descriptor) || watched[descriptor].kind != STREAM || (file = find(descriptor)) == NULL)
        return;
    if (fstat(descriptor, &status) == 0 && status.st_size > file->seen) {
        put_content(descriptor, file->inode, file->seen, status.st_size);
        file->seen = status.st_size;
    }
}

static FILE *open_stream(const char *call, const char *name, const char *mode)
{
    FILE *(*original)(const char *, const char *) = dlsym(RTLD_NEXT, call);
    char path[PATH_MAX];
    struct stat status;
    int flags = mode[0] == 'w' ? O_CREAT | O_TRUNC : mode[0] == 'a' ? O_CREAT : 0;
    if (!resolve(AT_FDCWD, name, path))
        return original(name, mode);
    pthread_mutex_lock(&lock);
    bool is_new = flags & O_CREAT && lstat(path, &status) < 0;
    FILE *stream = original(name, mode);
    if (stream != NULL)
        watch(fileno(stream), flags, is_new, STREAM);
    if (strchr(mode, '+') != NULL)
        strange("a stream that may write anywhere");
    pthread_mutex_unlock(&lock);
    return stream;
}

FILE *fopen(const char *path, const char *mode)
{
    return open_stream("fopen", path, mode);
}

FILE *fopen64(const char *path, const char *mode)
{
    return open_stream("fopen64", path, mode);
}

FILE *fdopen(int descriptor, const char *mode)
{
    FILE *(*original)(int, const char *) = dlsym(RTLD_NEXT, "fdopen");
    if (!PASSES(descriptor))
        watched[descriptor].kind = STREAM;
    return original(descriptor, mode);
}

int fflush(FILE *stream)
{
    int (*original)(FILE *) = dlsym(RTLD_NEXT, "fflush");
    int result = original(stream), saved = errno;
    if (journal < 0 || (stream != NULL && PASSES(fileno(stream))))
        return result;
    pthread_mutex_lock(&lock);
    for (int descriptor = 0; descriptor < DESCRIPTORS; descriptor++)
        if (stream == NULL || descriptor == fileno(stream))
            catch_up(descriptor);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int fclose(FILE *stream)
{
    int (*original)(FILE *) = dlsym(RTLD_NEXT, "fclose");
    int descriptor = fileno(stream);
    if (!PASSES(descriptor)) {
        fflush(stream);
        watched[descriptor].kind = NOTHING;
    }
    return original(stream);
}

/* -- syncing */

static int sync_with(long call, int descriptor)
{
    char path[PATH_MAX] = "";
    struct watched file;
    if (PASSES(descriptor))
        return (int)syscall(call, descriptor);
    pthread_mutex_lock(&lock);
    catch_up(descriptor);
    bool found = find(descriptor) != NULL;
    file = watched[descriptor];
    if (found && (file.kind != DIRECTORY || path_of(descriptor, path)))
        put_sync(SYNC_BEGIN, &file, path);
    pthread_mutex_unlock(&lock);
    int result = (int)syscall(call, descriptor);
    pthread_mutex_lock(&lock);
    if (found && result == 0)
        put_sync(SYNC_END, &file, path);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int descriptor)
{
    return sync_with(SYS_fsync, descriptor);
}

int fdatasync(int descriptor)
{
    return sync_with(SYS_fdatasync, descriptor);
}

int syncfs(int descriptor)
{
    strange("syncfs, which nobody was thought to call");
    return (int)syscall(SYS_syncfs, descriptor);
}

void sync(void)
{
    strange("sync, which nobody was thought to call");
    syscall(SYS_sync);
}

/* -- directories */

static int rename_at(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    char first[PATH_MAX], second[PATH_MAX];
    bool one = resolve(from_at, from, first), other = resolve(to_at, to, second);
    if (!one && !other)
        return (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (result == 0 && one && other && !(flags & ~(unsigned)RENAME_NOREPLACE))
        put_paths(RENAME, first, second);
    else if (result == 0)
        strange("a file that is moved in or out, or for another");
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to)
{
    return rename_at(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    return rename_at(from_at, from, to_at, to, 0);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    return rename_at(from_at, from, to_at, to, flags);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags)
{
    char first[PATH_MAX], second[PATH_MAX];
    bool one = resolve(from_at, from, first), other = resolve(to_at, to, second);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_linkat, from_at, from, to_at, to, flags);
    if (result == 0 && one && other)
        put_paths(LINK, first, second);
    else if (result == 0 && other)
        strange("a link to a file that is not inside");
    pthread_mutex_unlock(&lock);
    return result;
}

int link(const char *from, const char *to)
{
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int symlinkat(const char *target, int at, const char *name)
{
    char path[PATH_MAX];
    if (resolve(at, name, path))
        strange("a symbolic link");
    return (int)syscall(SYS_symlinkat, target, at, name);
}

int symlink(const char *target, const char *name)
{
    return symlinkat(target, AT_FDCWD, name);
}

int unlinkat(int at, const char *name, int flags)
{
    char path[PATH_MAX];
    if (!resolve(at, name, path))
        return (int)syscall(SYS_unlinkat, at, name, flags);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_unlinkat, at, name, flags);
    if (result == 0)
        put_paths(flags & AT_REMOVEDIR ? RMDIR : UNLINK, path, "");
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *name)
{
    return unlinkat(AT_FDCWD, name, 0);
}

int rmdir(const char *name)
{
    return unlinkat(AT_FDCWD, name, AT_REMOVEDIR);
}

int remove(const char *name)
{
    int result = unlink(name);
    return result < 0 && errno == EISDIR ? rmdir(name) : result;
}

int mkdirat(int at, const char *name, mode_t mode)
{
    char path[PATH_MAX];
    if (!resolve(at, name, path))
        return (int)syscall(SYS_mkdirat, at, name, mode);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_mkdirat, at, name, mode);
    if (result == 0)
        put_paths(MKDIR, path, "");
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *name, mode_t mode)
{
    return mkdirat(AT_FDCWD, name, mode);
}

/* -- memory */

static void *map(void *address, size_t length, int protection, int flags, int descriptor, off_t at)
{
    char path[PATH_MAX];
    size_t size;
    if (!PASSES(descriptor) && flags & MAP_SHARED && protection & PROT_WRITE && path_of(descriptor, path)) {
        size = strlen(path);
        if (size < 4 || strcmp(path + size - 4, "-shm") != 0) {
            pthread_mutex_lock(&lock);
            strange("memory that is mapped to be written");
            pthread_mutex_unlock(&lock);
        }
    }
    return (void *)syscall(SYS_mmap, address, length, protection, flags, descriptor, at);
}

void *mmap(void *address, size_t length, int protection, int flags, int descriptor, off_t at)
{
    return map(address, length, protection, flags, descriptor, at);
}

void *mmap64(void *address, size_t length, int protection, int flags, int descriptor, off64_t at)
{
    return map(address, length, protection, flags, descriptor, at);
}
