// A Vulkan layer with which SimplerEnv's original (SAPIEN 2) draws on Mesa's lavapipe, without a GPU: docs/simpler.md.
//
// SAPIEN 2 asks for VK_KHR_external_semaphore_fd, by which images are handed to CUDA. lavapipe may not have it, and nothing
// needs it where there is no CUDA: the layer claims that it is there, and takes it out again when a device is made.
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>

#define CLAIMED VK_KHR_EXTERNAL_SEMAPHORE_FD_EXTENSION_NAME
#define EXPORT __attribute__((visibility("default"))) VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL

static PFN_vkGetInstanceProcAddr next_in_instance;
static PFN_vkGetDeviceProcAddr next_in_device;
static PFN_vkCreateDevice next_create_device;
static PFN_vkEnumerateDeviceExtensionProperties next_extensions;

// The loader's word on what comes after this layer; both structures that hold it begin alike.
static void *find_link(const void *next, VkStructureType type) {
  for (const VkLayerInstanceCreateInfo *link = next; link; link = link->pNext)
    if (link->sType == type && link->function == VK_LAYER_LINK_INFO) return (void *)link;
  return NULL;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *memory,
                                                      VkInstance *instance) {
  VkLayerInstanceCreateInfo *link = find_link(info->pNext, VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO);
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  next_in_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  VkResult result = ((PFN_vkCreateInstance)next_in_instance(NULL, "vkCreateInstance"))(info, memory, instance);
  if (result == VK_SUCCESS) {  // asked now: later the loader would answer with this very layer
    next_create_device = (PFN_vkCreateDevice)next_in_instance(*instance, "vkCreateDevice");
    next_extensions = (PFN_vkEnumerateDeviceExtensionProperties)next_in_instance(*instance, "vkEnumerateDeviceExtensionProperties");
  }
  return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL extensions(VkPhysicalDevice device, const char *layer, uint32_t *count,
                                                 VkExtensionProperties *out) {
  uint32_t room = *count, real = 0;
  VkResult result = layer ? VK_SUCCESS : next_extensions(device, NULL, &real, NULL);
  if (layer || result != VK_SUCCESS) return layer ? next_extensions(device, layer, count, out) : result;
  if (!out) {
    *count = real + 1;
    return VK_SUCCESS;
  }
  if (room <= real) return next_extensions(device, NULL, count, out);
  result = next_extensions(device, NULL, &real, out);
  out[real] = (VkExtensionProperties){.extensionName = CLAIMED, .specVersion = 1};
  *count = real + 1;
  return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *memory, VkDevice *device) {
  VkLayerDeviceCreateInfo *link = find_link(info->pNext, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO);
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  next_in_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  const char **kept = calloc(info->enabledExtensionCount + 1, sizeof *kept);
  if (!kept) return VK_ERROR_OUT_OF_HOST_MEMORY;
  VkDeviceCreateInfo without = *info;
  without.ppEnabledExtensionNames = kept;
  without.enabledExtensionCount = 0;
  for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
    if (strcmp(info->ppEnabledExtensionNames[i], CLAIMED) != 0)
      kept[without.enabledExtensionCount++] = info->ppEnabledExtensionNames[i];
  VkResult result = next_create_device(physical, &without, memory, device);
  free(kept);
  return result;
}

EXPORT layer_vkGetDeviceProcAddr(VkDevice device, const char *name) {
  if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)layer_vkGetDeviceProcAddr;
  return next_in_device ? next_in_device(device, name) : NULL;
}

EXPORT layer_vkGetInstanceProcAddr(VkInstance instance, const char *name) {
  if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)layer_vkGetInstanceProcAddr;
  if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)layer_vkGetDeviceProcAddr;
  if (!strcmp(name, "vkCreateInstance")) return (PFN_vkVoidFunction)create_instance;
  if (!strcmp(name, "vkCreateDevice")) return (PFN_vkVoidFunction)create_device;
  if (!strcmp(name, "vkEnumerateDeviceExtensionProperties")) return (PFN_vkVoidFunction)extensions;
  return next_in_instance ? next_in_instance(instance, name) : NULL;
}
