#include "device/choice.h"

#include <stdio.h>
#include <string.h>

enum { MOST = 64, NAME = 240, WORK_GROUP = 256 /* of the product's kernel */ };

typedef struct {
    uint32_t count;
    qk_place at[MOST];
} places;

static void add_devices(const qk_opencl *cl, cl_platform_id platform, uint64_t kind, places *found) {
    cl_device_id devices[MOST];
    uint32_t count = 0;
    if (cl->GetDeviceIDs(platform, kind, MOST, devices, &count) != CL_SUCCESS) return;
    for (uint32_t i = 0; i < count && i < MOST && found->count < MOST; i++)
        found->at[found->count++] = (qk_place){platform, devices[i]};
}

static void get_text(const qk_opencl *cl, cl_device_id device, uint32_t what, char *text, size_t size) {
    text[0] = 0;
    if (cl->GetDeviceInfo(device, what, size, text, NULL) != CL_SUCCESS) text[0] = 0;
    text[size - 1] = 0;
}

/* The kernels sum in float64, and multiply in work-groups of 16 x 16. */
static bool is_able(const qk_opencl *cl, cl_device_id device, const char *name, char *why) {
    char extensions[QK_DEVICE_MESSAGE];
    size_t items = 0;
    get_text(cl, device, CL_DEVICE_EXTENSIONS, extensions, sizeof extensions);
    if (!strstr(extensions, "cl_khr_fp64")) {
        snprintf(why, QK_DEVICE_MESSAGE, "%s has no float64 (cl_khr_fp64)", name);
        return false;
    }
    if (cl->GetDeviceInfo(device, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof items, &items, NULL) != CL_SUCCESS ||
        items < WORK_GROUP) {
        snprintf(why, QK_DEVICE_MESSAGE, "%s runs only %zu work items together, and %d are needed", name, items,
                 WORK_GROUP);
        return false;
    }
    return true;
}

bool qk_choose_device(const qk_opencl *cl, const qk_device_choice *choice, qk_place *place, char *name, char *why) {
    cl_platform_id platforms[MOST];
    uint32_t count = 0;
    places found = {0};
    char device[NAME], driver[NAME];
    if (cl->GetPlatformIDs(MOST, platforms, &count) != CL_SUCCESS) count = 0;
    if (count > MOST) count = MOST;
    for (uint32_t i = 0; i < count && !choice->any_kind; i++) add_devices(cl, platforms[i], CL_DEVICE_TYPE_GPU, &found);
    if (choice->any_kind && choice->platform >= 0 && choice->platform < count)
        add_devices(cl, platforms[choice->platform], CL_DEVICE_TYPE_ALL, &found);
    if (choice->any_kind && choice->platform >= count) {
        snprintf(why, QK_DEVICE_MESSAGE, "there is no OpenCL platform %lld: there are %u", (long long)choice->platform,
                 count);
        return false;
    }
    if (choice->index < 0 || choice->index >= found.count) {
        snprintf(why, QK_DEVICE_MESSAGE, "there is no %s %lld: OpenCL finds %u, on %u platforms",
                 choice->any_kind ? "device" : "GPU", (long long)choice->index, found.count, count);
        return false;
    }
    *place = found.at[choice->index];
    get_text(cl, place->device, CL_DEVICE_NAME, device, sizeof device);
    get_text(cl, place->device, CL_DRIVER_VERSION, driver, sizeof driver);
    snprintf(name, QK_DEVICE_NAME, "%s (driver %s)", device, driver);
    return is_able(cl, place->device, name, why);
}
