// What CUDA adds to C++, for the host compiler: the keywords, the built-in variables, barriers, shuffles and
// votes, and the launch. csrc/cuda includes this instead of <cuda_runtime.h> when nvcc does not compile it.
#pragma once

#include <cstring>
#include <tuple>
#include <utility>

#include "simt/machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define threadIdx (::glm::simt::this_thread().index)
#define blockIdx (::glm::simt::machine().block_index())
#define blockDim (::glm::simt::machine().block_dim())
#define gridDim (::glm::simt::machine().grid_dim())

typedef struct CUstream_st* cudaStream_t;

namespace glm::simt {

// A collective of the warp: each lane brings a Slot, the last to arrive runs body(lanes) for all, where
// lanes[i] is lane i's slot or null.
template <class Slot, class Body>
void warp_collective(const char* what, uint32_t mask, Slot& slot, Site site, Body&& body) {
  Slots slots;
  if (!machine().join_warp(what, mask, &slot, slots, site)) return;
  Slot* lanes[kWarpSize];
  for (int lane = 0; lane < kWarpSize; ++lane) lanes[lane] = static_cast<Slot*>(slots[lane]);
  body(lanes);
  machine().release_warp(mask);
}

template <class T>
struct ShuffleSlot {
  T value, result;
  int source;
};

// Lane i gets the value of lane source(i); its own where that is outside of the lane's segment.
template <class T>
T shuffle(const char* what, uint32_t mask, T value, int source, Site site) {
  ShuffleSlot<T> slot{value, value, source};
  warp_collective(what, mask, slot, site, [&](ShuffleSlot<T>* const(&lanes)[kWarpSize]) {
    for (ShuffleSlot<T>* lane : lanes) {
      if (lane == nullptr) continue;
      if (lanes[lane->source] == nullptr)
        fault(site, what, ": reads lane ", lane->source, ", which is not in the mask");
      lane->result = lanes[lane->source]->value;
    }
  });
  return slot.result;
}

}  // namespace glm::simt

inline void __syncthreads(glm::simt::Site site = glm::simt::Site::current()) {
  glm::simt::machine().block_barrier(site);
}

inline void __syncwarp(uint32_t mask = glm::simt::kFullMask,
                       glm::simt::Site site = glm::simt::Site::current()) {
  using glm::simt::Thread;
  Thread* self = &glm::simt::this_thread();
  glm::simt::warp_collective("__syncwarp", mask, *self, site,
                             [&](Thread* const(&lanes)[glm::simt::kWarpSize]) {
                               for (Thread* lane : lanes)
                                 if (lane != nullptr && mask == glm::simt::kFullMask) ++lane->warp_epoch;
                             });
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
              glm::simt::Site site = glm::simt::Site::current()) {
  const int lane = glm::simt::this_thread().lane;
  return glm::simt::shuffle("__shfl_sync", mask, value, lane / width * width + source % width, site);
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32,
                  glm::simt::Site site = glm::simt::Site::current()) {
  const int lane = glm::simt::this_thread().lane, source = lane ^ lane_mask;
  return glm::simt::shuffle("__shfl_xor_sync", mask, value, source / width > lane / width ? lane : source,
                            site);
}

template <class T>
T __shfl_up_sync(uint32_t mask, T value, int delta, int width = 32,
                 glm::simt::Site site = glm::simt::Site::current()) {
  const int lane = glm::simt::this_thread().lane;
  return glm::simt::shuffle("__shfl_up_sync", mask, value, lane % width < delta ? lane : lane - delta, site);
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, int delta, int width = 32,
                   glm::simt::Site site = glm::simt::Site::current()) {
  const int lane = glm::simt::this_thread().lane;
  return glm::simt::shuffle("__shfl_down_sync", mask, value,
                            lane % width + delta < width ? lane + delta : lane, site);
}

inline uint32_t __ballot_sync(uint32_t mask, bool predicate,
                              glm::simt::Site site = glm::simt::Site::current()) {
  struct Slot {
    bool predicate;
    uint32_t votes;
  } slot{predicate, 0};
  glm::simt::warp_collective("__ballot_sync", mask, slot, site,
                             [](Slot* const(&lanes)[glm::simt::kWarpSize]) {
                               uint32_t votes = 0;
                               for (int lane = 0; lane < glm::simt::kWarpSize; ++lane)
                                 if (lanes[lane] != nullptr && lanes[lane]->predicate) votes |= 1u << lane;
                               for (Slot* lane : lanes)
                                 if (lane != nullptr) lane->votes = votes;
                             });
  return slot.votes;
}

inline bool __any_sync(uint32_t mask, bool predicate, glm::simt::Site site = glm::simt::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}

inline bool __all_sync(uint32_t mask, bool predicate, glm::simt::Site site = glm::simt::Site::current()) {
  return __ballot_sync(mask, !predicate, site) == 0;
}

namespace glm::cuda {

inline void zero_async(void* data, size_t bytes, cudaStream_t) { std::memset(data, 0, bytes); }

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, SharedBytes shared, cudaStream_t,
            Args&&... args) {
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> arguments;
  };
  const Call call{kernel, {static_cast<Params>(args)...}};
  simt::machine().run(
      grid, block, shared.bytes,
      [](const void* pointer) {
        const Call& c = *static_cast<const Call*>(pointer);
        std::apply(c.kernel, c.arguments);
      },
      &call);
}

}  // namespace glm::cuda
