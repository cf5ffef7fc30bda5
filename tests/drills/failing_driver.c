// A CUDA driver that fails, for tests/drills/run_cuda. Preloaded, it stands before the real one:
//   FAIL=lost:N    the device is lost at the Nth launch
//   FAIL=memory:N  the Nth and every later allocation finds no memory
//   FAIL=old       the driver does not know the kernels' PTX
//   LAUNCHES=FILE  nothing fails; how many launches there were is written to FILE
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_OF_MEMORY = 2, UNSUPPORTED_PTX_VERSION = 222, LAUNCH_FAILED = 719 };

static atomic_long calls;
static atomic_int lost;

static int fails(const char *how) {
    const char *fail = getenv("FAIL");
    size_t length = strlen(how);
    if (!fail || strncmp(fail, how, length) != 0) return 0;
    long after = fail[length] == ':' ? atol(fail + length + 1) : 0;
    return atomic_fetch_add(&calls, 1) + 1 >= after;
}

static atomic_long launches;

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("LAUNCHES");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%ld\n", launches);
        fclose(file);
    }
}

#define REAL(name) dlsym(RTLD_NEXT, name)

int cuLaunchKernel(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g,
                   unsigned shared, void *stream, void **args, void **extra) {
    launches++;
    if (fails("lost")) lost = 1;
    if (lost) return LAUNCH_FAILED;
    int (*real)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                void **, void **) = REAL("cuLaunchKernel");
    return real(f, a, b, c, d, e, g, shared, stream, args, extra);
}

int cuGraphLaunch(void *graph, void *stream) {
    launches++;
    if (fails("lost")) lost = 1;
    if (lost) return LAUNCH_FAILED;
    int (*real)(void *, void *) = REAL("cuGraphLaunch");
    return real(graph, stream);
}

// What is lost stays lost: every later call says so too.
int cuStreamSynchronize(void *stream) {
    if (lost) return LAUNCH_FAILED;
    int (*real)(void *) = REAL("cuStreamSynchronize");
    return real(stream);
}

int cuMemAlloc_v2(unsigned long long *pointer, size_t bytes) {
    if (fails("memory")) return OUT_OF_MEMORY;
    if (lost) return LAUNCH_FAILED;
    int (*real)(unsigned long long *, size_t) = REAL("cuMemAlloc_v2");
    return real(pointer, bytes);
}

int cuModuleLoadDataEx(void **module, const void *image, unsigned n, void *options, void **values) {
    if (fails("old")) return UNSUPPORTED_PTX_VERSION;
    int (*real)(void **, const void *, unsigned, void *, void **) = REAL("cuModuleLoadDataEx");
    return real(module, image, n, options, values);
}

int cuDriverGetVersion(int *version) {
    if (fails("old")) {
        *version = 10020;
        return 0;
    }
    int (*real)(int *) = REAL("cuDriverGetVersion");
    return real(version);
}
