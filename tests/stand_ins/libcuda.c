/* A stand-in for NVIDIA's driver library: GPUs whose memory is the host's, and which compute the project's two kernels.
 *
 *     cc -O3 -ffast-math -shared -fPIC -o FOLDER/libcuda.so.1 libcuda.c -ldl     and then LD_LIBRARY_PATH=FOLDER
 *
 * It has what numba-cuda calls. So numba-cuda really compiles, links, loads, uploads, launches and downloads; only what
 * a launch does is computed here, in C, for kernels with `multiply_tiles` or `pad` in their names. As the real one it
 * refuses: any call before cuInit, after a fork, or without a context; wrong pointers and sizes; machine code for
 * another GPU; a second process in exclusive mode without MPS; more memory than there is.
 *
 * STAND_INS names the folder of the state, which the stand-ins of nvidia-smi and MPS share: `modes/<gpu>` for each GPU.
 * Each context notes in `cuda/<gpu>.<pid>` how many bytes it has taken. What a test sets, in the environment:
 *
 *     STAND_IN_CC       compute capability of each GPU, "7.0,9.0"; the last one for all further GPUs (default "7.0")
 *     STAND_IN_CUDA     the newest CUDA that this driver knows (default 12080)
 *     STAND_IN_MEMORY   bytes of each GPU (default 16 GiB)
 *     STAND_IN_LOG      file that gets a line for each call: process and function
 *
 * and in the file `cuda-fail` lines `function code times`: so many next calls of that function, by whichever process,
 * return that error. One that ends a context (700, 719, 806, ...) is then returned by all that need the context.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, DEVICE_UNAVAILABLE = 46, NO_DEVICE = 100,
       INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY = 209, UNSUPPORTED_PTX = 222,
       INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, HOST_REGISTERED = 712, HOST_NOT_REGISTERED = 713 };
enum { MOST_GPUS = 64, MOST_CONTEXTS = 32, PATH = 600, CONTEXT_BYTES = 300 << 20 };
typedef int Code;
typedef uint64_t Pointer;

static pid_t initialised;                   /* who called cuInit: after a fork that is another process */
static int visible[MOST_GPUS], gpus;        /* the machine's number of each GPU that this process sees */
static int retained[MOST_GPUS];             /* how often each one's context is in use */
static __thread int stack[MOST_CONTEXTS], depth; /* the current contexts, by device */
static Code lost;                           /* what ended the context */

/* Settings and state */

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static const char *in_state(char *path, const char *name) {
    snprintf(path, PATH, "%s/%s", setting("STAND_INS", "/nonexistent"), name);
    return path;
}

static const char *mode_file(char *path, int gpu) {
    char name[40];
    snprintf(name, sizeof name, "modes/%d", gpu);
    return in_state(path, name);
}

static int read_word(const char *path, const char *format, void *value) {
    FILE *file = fopen(path, "r");
    int found = file && fscanf(file, format, value) == 1;
    if (file) fclose(file);
    return found;
}

static size_t memory(void) { return strtoull(setting("STAND_IN_MEMORY", "17179869184"), NULL, 10); }

static int capability(int gpu) { /* 75 for 7.5 */
    const char *at = setting("STAND_IN_CC", "7.0"), *next;
    while (gpu-- > 0 && (next = strchr(at, ','))) at = next + 1;
    char *point;
    int major = (int)strtol(at, &point, 10);
    return 10 * major + (*point == '.' ? atoi(point + 1) : 0);
}

/* Every call: logged, failed if a test wants that, and refused where there was no cuInit */

static int ends_context(Code code) {
    static const Code codes[] = {214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 806, 810, 999};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i] == code) return 1;
    return 0;
}

static void log_call(const char *function) {
    const char *path = getenv("STAND_IN_LOG");
    char line[200];
    if (!path) return;
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0) return;
    if (write(file, line, snprintf(line, sizeof line, "%d %s\n", getpid(), function)) < 0) perror(path);
    close(file);
}

static Code wanted_failure(const char *function) {
    char path[PATH], line[200], name[200], rest[4000] = "";
    Code code, found = OK;
    int times;
    FILE *file = fopen(in_state(path, "cuda-fail"), "r+");
    if (!file) return OK;
    flock(fileno(file), LOCK_EX);
    while (fgets(line, sizeof line, file)) {
        if (!found && sscanf(line, "%199s %d %d", name, &code, &times) == 3 && times > 0 && !strcmp(name, function)) {
            found = code;
            snprintf(line, sizeof line, "%s %d %d\n", function, code, times - 1);
        }
        strncat(rest, line, sizeof rest - strlen(rest) - 1);
    }
    if (found) {
        rewind(file);
        fputs(rest, file);
        fflush(file);
        if (ftruncate(fileno(file), (off_t)strlen(rest))) perror(path);
    }
    fclose(file);
    if (ends_context(found)) lost = found;
    return found;
}

static Code called(const char *function) {
    log_call(function);
    return wanted_failure(function);
}

#define CALL                                    \
    Code failure = called(__func__);            \
    if (failure) return failure;                \
    if (initialised != getpid()) return NOT_INITIALIZED
/* What asks nothing of the context does not notice that it is lost. */
#define IN_CONTEXT                              \
    CALL;                                       \
    if (!depth) return INVALID_CONTEXT;         \
    if (lost) return lost
#define HERE visible[stack[depth - 1]]

/* Devices */

static void see(void) {
    char path[PATH];
    int there = 0;
    while (there < MOST_GPUS && !access(mode_file(path, there), F_OK)) there++;
    const char *given = getenv("CUDA_VISIBLE_DEVICES");
    gpus = 0;
    if (!given)
        for (; gpus < there; gpus++) visible[gpus] = gpus;
    else {
        char *list = strdup(given), *rest, *end;
        for (char *name = strtok_r(list, ",", &rest); name && gpus < MOST_GPUS; name = strtok_r(NULL, ",", &rest)) {
            if (!strncmp(name, "GPU-stand-in-", 13)) name += 13;
            long number = strtol(name, &end, 10);
            if (end == name || *end || number < 0 || number >= there) break; /* nor does any count that follows */
            visible[gpus++] = (int)number;
        }
        free(list);
    }
}

Code cuInit(unsigned flags) {
    Code failure = called(__func__);
    if (failure) return failure;
    see();
    if (!gpus) return NO_DEVICE;
    initialised = getpid();
    return OK;
}

Code cuDriverGetVersion(int *version) { return *version = atoi(setting("STAND_IN_CUDA", "12080")), called(__func__); }
Code cuDeviceGetCount(int *count) { CALL; return *count = gpus, OK; }
Code cuDeviceGetName(char *name, int size, int device) { CALL; return snprintf(name, size, "Stand-in GPU"), OK; }
Code cuDeviceGetUuid_v2(char *uuid, int device) { CALL; return memset(uuid, 1 + visible[device], 16), OK; }

Code cuDeviceGetAttribute(int *value, int attribute, int device) {
    CALL;
    switch (attribute) { /* as cuda.h numbers them */
    case 1: case 2: case 3: *value = 1024; break;             /* threads of a block, and along x and y */
    case 4: *value = 64; break;                               /* along z */
    case 5: *value = 0x7fffffff; break;                       /* blocks of a grid, along x */
    case 6: case 7: *value = 65535; break;                    /* along y and z */
    case 8: *value = 49152; break;                            /* bytes of shared memory of a block */
    case 10: *value = 32; break;                              /* threads of a warp */
    case 12: *value = 65536; break;                           /* registers of a block */
    case 16: *value = 80; break;                              /* multiprocessors */
    case 19: case 31: case 40: case 41: *value = 1; break;    /* can map, run kernels together, copy meanwhile; UVA */
    case 33: *value = 0x15 + visible[device]; break;          /* number on the PCI bus */
    case 39: *value = 2048; break;                            /* threads of a multiprocessor */
    case 75: *value = capability(visible[device]) / 10; break;
    case 76: *value = capability(visible[device]) % 10; break;
    default: *value = 0;
    }
    return OK;
}

/* Memory: blocks of the host's, and the host's own that are registered */

static struct Block { Pointer at; size_t size; int gpu, registered; struct Block *next; } *blocks;

static struct Block **find(Pointer at, size_t size, int registered) {
    struct Block **link = &blocks;
    for (; *link; link = &(*link)->next)
        if ((*link)->registered == registered && at >= (*link)->at && at + size <= (*link)->at + (*link)->size) break;
    return link;
}

static void add(Pointer at, size_t size, int registered) {
    struct Block *block = malloc(sizeof *block);
    *block = (struct Block){at, size, HERE, registered, blocks};
    blocks = block;
}

static void forget(struct Block **link) {
    struct Block *block = *link;
    *link = block->next;
    if (!block->registered) munmap((void *)block->at, block->size);
    free(block);
}

static const char *context_file(char *path, int gpu, int pid) {
    char name[60];
    snprintf(name, sizeof name, "cuda/%d.%d", gpu, pid);
    return in_state(path, name);
}

/* Count the contexts of living processes on a GPU, and the bytes that they have taken. */
static int contexts(int gpu, size_t *taken) {
    char path[PATH];
    int count = 0, number, pid;
    size_t bytes;
    DIR *folder = opendir(in_state(path, "cuda"));
    *taken = 0;
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        if (sscanf(entry->d_name, "%d.%d", &number, &pid) != 2 || number != gpu) continue;
        if (kill(pid, 0)) unlink(context_file(path, gpu, pid));
        else if (read_word(context_file(path, gpu, pid), "%zu", &bytes)) *taken += bytes, count++;
    }
    if (folder) closedir(folder);
    return count;
}

static void note_taken(int gpu) {
    char path[PATH], text[30];
    size_t bytes = CONTEXT_BYTES;
    for (struct Block *block = blocks; block; block = block->next)
        if (!block->registered && block->gpu == gpu) bytes += block->size;
    mkdir(in_state(path, "cuda"), 0700);
    int file = open(context_file(path, gpu, getpid()), O_WRONLY | O_CREAT, 0600);
    /* Always as long, so that nobody reads half of it. */
    if (file < 0 || pwrite(file, text, snprintf(text, sizeof text, "%020zu\n", bytes), 0) < 0) perror(path);
    if (file >= 0) close(file);
}

Code cuMemGetInfo_v2(size_t *available, size_t *total) {
    IN_CONTEXT;
    size_t taken;
    contexts(HERE, &taken);
    *total = memory();
    *available = taken < *total ? *total - taken : 0;
    return OK;
}

Code cuMemAlloc_v2(Pointer *at, size_t size) {
    IN_CONTEXT;
    size_t taken;
    contexts(HERE, &taken);
    if (!size) return INVALID_VALUE;
    if (size > memory() || taken + size > memory()) return OUT_OF_MEMORY;
    void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) return OUT_OF_MEMORY;
    add(*at = (Pointer)block, size, 0);
    note_taken(HERE);
    return OK;
}

Code cuMemFree_v2(Pointer at) { /* its address tells whose it is: no context needs to be current */
    CALL;
    if (lost) return lost;
    struct Block **link = find(at, 1, 0);
    if (!*link || (*link)->at != at) return INVALID_VALUE;
    int gpu = (*link)->gpu;
    forget(link);
    note_taken(gpu);
    return OK;
}

Code cuMemHostRegister_v2(void *at, size_t size, unsigned flags) {
    IN_CONTEXT;
    if (*find((Pointer)at, 1, 1)) return HOST_REGISTERED;
    return add((Pointer)at, size, 1), OK;
}

Code cuMemHostUnregister(void *at) {
    IN_CONTEXT;
    struct Block **link = find((Pointer)at, 1, 1);
    return *link ? forget(link), OK : HOST_NOT_REGISTERED;
}

Code cuMemcpyHtoD_v2(Pointer to, const void *from, size_t size) {
    IN_CONTEXT;
    return *find(to, size, 0) ? memcpy((void *)to, from, size), OK : INVALID_VALUE;
}

Code cuMemcpyDtoH_v2(void *to, Pointer from, size_t size) {
    IN_CONTEXT;
    return *find(from, size, 0) ? memcpy(to, (void *)from, size), OK : INVALID_VALUE;
}

/* Contexts: each GPU's primary one */

enum { HANDLE = 0xC0000 }; /* that of device 0 */
static void *handle_of(int device) { return (void *)(intptr_t)(HANDLE + device); }
static int is_context(void *handle) {
    intptr_t device = (intptr_t)handle - HANDLE;
    return device >= 0 && device < gpus && retained[device];
}

static int under_mps(void) {
    char path[PATH];
    int pid;
    snprintf(path, PATH, "%s/nvidia-cuda-mps-control.pid", setting("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"));
    return read_word(path, "%d", &pid) && !kill(pid, 0);
}

Code cuDevicePrimaryCtxRetain(void **context, int device) {
    CALL;
    if (device < 0 || device >= gpus) return INVALID_DEVICE;
    if (!retained[device]) {
        char path[PATH], mode[64];
        size_t taken;
        int others = contexts(visible[device], &taken);
        int exclusive = read_word(mode_file(path, visible[device]), "%63s", mode) && !strcmp(mode, "Exclusive_Process");
        if (others && exclusive && !under_mps()) return DEVICE_UNAVAILABLE;
        if (taken + CONTEXT_BYTES > memory()) return OUT_OF_MEMORY;
        note_taken(visible[device]);
    }
    retained[device]++;
    return *context = handle_of(device), OK;
}

static void destroy(int device) {
    char path[PATH];
    retained[device] = 0;
    unlink(context_file(path, visible[device], getpid()));
    for (struct Block **link = &blocks; *link;)
        if ((*link)->gpu == visible[device]) forget(link);
        else link = &(*link)->next;
}

Code cuDevicePrimaryCtxRelease_v2(int device) {
    CALL;
    if (!retained[device]) return INVALID_CONTEXT;
    if (!--retained[device]) destroy(device);
    return OK;
}
Code cuDevicePrimaryCtxReset_v2(int device) { CALL; return destroy(device), lost = OK; }

Code cuCtxPushCurrent_v2(void *context) {
    CALL;
    if (!is_context(context) || depth == MOST_CONTEXTS) return INVALID_CONTEXT;
    stack[depth++] = (int)((intptr_t)context - HANDLE);
    return OK;
}
Code cuCtxPopCurrent_v2(void **context) {
    CALL;
    if (!depth) return INVALID_CONTEXT;
    depth--;
    if (context) *context = handle_of(stack[depth]);
    return OK;
}
Code cuCtxSetCurrent(void *context) {
    CALL;
    if (context && !is_context(context)) return INVALID_CONTEXT;
    if (depth) depth--;
    if (context) stack[depth++] = (int)((intptr_t)context - HANDLE);
    return OK;
}
Code cuCtxGetCurrent(void **context) { CALL; return *context = depth ? handle_of(stack[depth - 1]) : NULL, OK; }
Code cuCtxGetDevice(int *device) { CALL; return depth ? *device = stack[depth - 1], OK : INVALID_CONTEXT; }
Code cuCtxSynchronize(void) { IN_CONTEXT; return OK; }

/* Machine code: an ELF file whose flags say for which GPU, with a section for each kernel */

struct Kernel { char name[400]; int loaded; };
struct Library { char *data; size_t size; struct Kernel kernels[4]; };

Code cuLibraryLoadData(struct Library **made, const unsigned char *image, void *jit, void *jit_values, unsigned jits,
                       void *options, void *values, unsigned count) {
    CALL;
    if (memcmp(image, "\x7f" "ELF", 4))
        return strstr((const char *)image, ".version") ? UNSUPPORTED_PTX : INVALID_IMAGE;
    if (image[18] != 190) return INVALID_IMAGE; /* of CUDA */
    uint32_t flags;
    uint64_t sections;
    uint16_t size, number;
    memcpy(&sections, image + 40, sizeof sections);
    memcpy(&flags, image + 48, sizeof flags);
    memcpy(&size, image + 58, sizeof size);
    memcpy(&number, image + 60, sizeof number);
    int built_for = (image[8] >= 8 ? flags >> 8 : flags) & 0xff, here = capability(depth ? HERE : visible[0]);
    if (built_for / 10 != here / 10 || built_for > here) return NO_BINARY;
    struct Library *library = calloc(1, sizeof *library);
    library->size = sections + (uint64_t)size * number;
    library->data = memcpy(malloc(library->size), image, library->size);
    return *made = library, OK;
}

Code cuLibraryUnload(struct Library *library) {
    CALL;
    if (!library->data) return INVALID_HANDLE;
    free(library->data);
    return library->data = NULL, OK;
}

Code cuLibraryGetKernel(struct Kernel **found, struct Library *library, const char *name) {
    CALL;
    char section[420];
    struct Kernel *kernel = library->kernels, *end = kernel + sizeof library->kernels / sizeof *kernel;
    if (!library->data || strlen(name) >= sizeof kernel->name) return INVALID_HANDLE;
    int size = snprintf(section, sizeof section, ".text.%s", name);
    if (!memmem(library->data, library->size, section, size + 1)) return NOT_FOUND;
    while (kernel < end && kernel->loaded && strcmp(kernel->name, name)) kernel++;
    if (kernel == end) return NOT_FOUND;
    strcpy(kernel->name, name);
    kernel->loaded = 1;
    return *found = kernel, OK;
}

Code cuKernelGetAttribute(int *value, int attribute, struct Kernel *kernel, int device) {
    CALL;
    return *value = attribute == 0 ? 1024 : attribute == 4 ? 40 : 0, OK; /* threads of a block, registers */
}

/* Launches */

struct Array { Pointer data; int64_t item, rows, columns; };

/* An array among a kernel's arguments is, as Numba passes it: two pointers, size, bytes of an item, data, shape, strides. */
static int is_array(void **arguments, struct Array *array) {
    int64_t value[9];
    for (int i = 0; i < 9; i++) memcpy(value + i, arguments[i], sizeof *value);
    *array = (struct Array){(Pointer)value[4], value[3], value[5], value[6]};
    return (array->item == 4 || array->item == 8) && value[2] == array->rows * array->columns &&
           value[7] == array->item * array->columns && value[8] == array->item &&
           *find(array->data, (size_t)(value[2] * array->item), 0);
}
static float get(const struct Array *array, int64_t row, int64_t column) {
    int64_t at = row * array->columns + column;
    return array->item == 8 ? (float)((double *)array->data)[at] : ((float *)array->data)[at];
}
static void put(const struct Array *array, int64_t row, int64_t column, float value) {
    int64_t at = row * array->columns + column;
    if (array->item == 8) ((double *)array->data)[at] = value;
    else ((float *)array->data)[at] = value;
}

static void square(const struct Array *a, const struct Array *c) {
    int64_t n = c->rows;
    float *values = malloc(sizeof *values * n * n), *sums = malloc(sizeof *sums * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) values[i * n + j] = get(a, i, j);
    for (int64_t i = 0; i < n; i++) {
        memset(sums, 0, sizeof *sums * n);
        for (int64_t k = 0; k < n; k++)
            for (int64_t j = 0; j < n; j++) sums[j] += values[i * n + k] * values[k * n + j];
        for (int64_t j = 0; j < n; j++) put(c, i, j, sums[j]);
    }
    free(values);
    free(sums);
}

Code cuLaunchKernelEx(const unsigned *config, struct Kernel *kernel, void **arguments, void **extra) {
    IN_CONTEXT;
    unsigned blocks_x = config[0], blocks_y = config[1], threads_x = config[3], threads_y = config[4];
    struct Array a, c;
    if (!kernel->loaded) return INVALID_HANDLE;
    if (!blocks_x || !blocks_y || !threads_x || !threads_y || threads_x * threads_y > 1024) return INVALID_VALUE;
    if (!is_array(arguments, &a) || !is_array(arguments + 9, &c)) return lost = ILLEGAL_ADDRESS, OK; /* seen later */
    if (strstr(kernel->name, "multiply_tiles")) {
        /* The fast kernel, which make_kernels() makes, has 8 x 8 elements for each thread. Some must be for each one. */
        int64_t of_thread = strstr(kernel->name, "make_kernels") ? 8 : 1, n = c.rows;
        if (blocks_x * threads_x * of_thread < n || blocks_y * threads_y * of_thread < n || a.rows < n) return INVALID_VALUE;
        square(&a, &c);
    } else if (strstr(kernel->name, "pad"))
        for (int64_t i = 0; i < c.rows; i++)
            for (int64_t j = 0; j < c.columns; j++) put(&c, i, j, i < a.rows && j < a.columns ? get(&a, i, j) : 0);
    else return NOT_FOUND;
    return OK;
}

/* Events: whatever was called is done */

struct Event { struct timespec at; int recorded; };
Code cuEventCreate(struct Event **event, unsigned flags) { IN_CONTEXT; return *event = calloc(1, sizeof **event), OK; }
Code cuEventDestroy_v2(struct Event *event) { CALL; return free(event), OK; }
Code cuEventSynchronize(struct Event *event) { IN_CONTEXT; return OK; }
Code cuEventRecord(struct Event *event, void *stream) {
    IN_CONTEXT;
    clock_gettime(CLOCK_MONOTONIC, &event->at);
    return event->recorded = 1, OK;
}
Code cuEventElapsedTime_v2(float *ms, struct Event *begin, struct Event *end) {
    IN_CONTEXT;
    if (!begin->recorded || !end->recorded) return INVALID_HANDLE;
    *ms = (end->at.tv_sec - begin->at.tv_sec) * 1e3f + (end->at.tv_nsec - begin->at.tv_nsec) * 1e-6f;
    return OK;
}

/* Names */

Code cuGetErrorName(Code code, const char **name) { /* bindings have names of their own for most errors, but ask, too */
    static const struct { Code code; const char *name; } names[] = {
        {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {46, "CUDA_ERROR_DEVICE_UNAVAILABLE"}, {200, "CUDA_ERROR_INVALID_IMAGE"},
        {214, "CUDA_ERROR_ECC_UNCORRECTABLE"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {719, "CUDA_ERROR_LAUNCH_FAILED"},
        {802, "CUDA_ERROR_SYSTEM_NOT_READY"}, {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
        {805, "CUDA_ERROR_MPS_CONNECTION_FAILED"}, {806, "CUDA_ERROR_MPS_RPC_FAILURE"},
        {807, "CUDA_ERROR_MPS_SERVER_NOT_READY"}, {808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED"},
        {810, "CUDA_ERROR_MPS_CLIENT_TERMINATED"}};
    *name = "CUDA_ERROR_OF_THE_STAND_IN";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == code) *name = names[i].name;
    return OK;
}
Code cuGetErrorString(Code code, const char **text) { return *text = "an error of the stand-in", OK; }

/* How callers find all of these: without the ending that says which version of the function it is. */
Code cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    Dl_info self;
    char name[200];
    dladdr((void *)&cuGetProcAddress_v2, &self);
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    snprintf(name, sizeof name, "%s_v2", symbol);
    if (!(*function = dlsym(library, name))) *function = dlsym(library, symbol);
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
