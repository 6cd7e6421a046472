/* A stand-in for NVIDIA's management library, libnvidia-ml.so.1: the energy counters of the stand-in nvidia-smi's GPUs.
 *
 *     cc -shared -fPIC -o FOLDER/libnvidia-ml.so.1 nvml.c;  LD_LIBRARY_PATH=FOLDER
 *
 * STAND_INS is the folder of the state that the stand-ins share: there is a GPU n for each file modes/<n>. Its counter
 * counts at the power that the stand-in nvidia-smi prints, unless the file energy/<n> is there: with a number of
 * millijoules, or with a negative one, the error that is returned. The file no-driver makes the library fail to start. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9,
       GPU_IS_LOST = 15 };
enum { MOST_GPUS = 64 };

static int started;
static char devices[MOST_GPUS]; /* what a handle points to */

static FILE *state(const char *name, int gpu) {
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", getenv("STAND_INS") ? getenv("STAND_INS") : ".", name);
    if (gpu >= 0) snprintf(path + length, sizeof path - length, "/%d", gpu);
    return fopen(path, "r");
}

static int is_there(const char *name, int gpu) {
    FILE *file = state(name, gpu);
    if (file) fclose(file);
    return file != NULL;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (is_there("no-driver", -1)) return DRIVER_NOT_LOADED;
    started++;
    return SUCCESS;
}

int nvmlShutdown(void) {
    return started ? started--, SUCCESS : UNINITIALIZED;
}

const char *nvmlErrorString(int code) {
    return code == NOT_SUPPORTED ? "Not Supported" : code == GPU_IS_LOST ? "GPU is lost" : "Another Error";
}

static int find(const char *format, const char *name, void **device) {
    char own[64];
    if (!started) return UNINITIALIZED;
    if (!name || !device) return INVALID_ARGUMENT;
    for (int gpu = 0; gpu < MOST_GPUS && is_there("modes", gpu); gpu++) {
        snprintf(own, sizeof own, format, strchr(format, 'X') ? 0x15 + gpu : gpu);
        if (!strcmp(own, name)) {
            *device = &devices[gpu];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    return find("GPU-stand-in-%d", uuid, device);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device) {
    return find("00000000:%02X:00.0", bus_id, device);
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    struct timespec now;
    if (!started) return UNINITIALIZED;
    int gpu = (int)((char *)device - devices);
    if (gpu < 0 || gpu >= MOST_GPUS || !millijoules) return INVALID_ARGUMENT;
    FILE *file = state("energy", gpu);
    long long set = 0;
    if (file) {
        int found = fscanf(file, "%lld", &set);
        fclose(file);
        if (found != 1) return INVALID_ARGUMENT;
        if (set < 0) return (int)-set;
        *millijoules = set;
    } else {
        clock_gettime(CLOCK_MONOTONIC, &now);
        *millijoules = (unsigned long long)((100.5 + gpu) * (now.tv_sec * 1e3 + now.tv_nsec / 1e6));
    }
    return SUCCESS;
}
