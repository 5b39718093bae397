// The instructions that kernels are written in. Each has two bodies: this one, inline PTX for nvcc, and the
// one in simt/ptx.h, with which the host compiler runs the same kernel. Kernels touch shared and global
// memory through these functions alone: on the host they check and count.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"

namespace glm::cuda {

// kCount values that move as one access of up to 16 bytes.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  static_assert(sizeof(T) * kCount <= 16);
  T value[kCount];
};

inline constexpr int kWarp = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

// Shared memory of a launch, and the most that any launch of the kernel asks for: a kernel has one limit, which
// threads of the host share.
struct SharedBytes {
  int64_t bytes, most;
  SharedBytes(int64_t of_every_launch) : bytes(of_every_launch), most(of_every_launch) {}
  SharedBytes(int64_t of_this_launch, int64_t at_most) : bytes(of_this_launch), most(at_most) {}
};

}  // namespace glm::cuda

#if !defined(__CUDACC__)
#include "simt/ptx.h"
#else
#include <cuda_runtime.h>

#include "cuda/check.cuh"

namespace glm::cuda {

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, SharedBytes shared, cudaStream_t stream,
            Args&&... args) {
  if (shared.most > 48 * 1024)  // what a kernel gets without asking
    GLM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared.most)));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared.bytes);
  config.stream = stream;
  GLM_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

inline void zero_async(void* data, size_t bytes, cudaStream_t stream) {
  GLM_CUDA_CHECK(cudaMemsetAsync(data, 0, bytes, stream));
}

// ---- memory
// --------------------------------------------------------------------------------------------------

namespace detail {

// The unsigned type that moves sizeof(T) bytes in one instruction.
template <size_t kBytes>
struct Mover;
template <>
struct Mover<16> {
  using type = uint4;
};
template <>
struct Mover<8> {
  using type = uint2;
};
template <>
struct Mover<4> {
  using type = uint32_t;
};
template <>
struct Mover<2> {
  using type = uint16_t;
};
template <>
struct Mover<1> {
  using type = uint8_t;
};

template <class T>
__device__ __forceinline__ T load(const T* pointer) {
  return std::bit_cast<T>(*reinterpret_cast<const typename Mover<sizeof(T)>::type*>(pointer));
}

template <class T>
__device__ __forceinline__ void store(T* pointer, T value) {
  using Whole = typename Mover<sizeof(T)>::type;
  *reinterpret_cast<Whole*>(pointer) = std::bit_cast<Whole>(value);
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace detail

template <class T>
__device__ __forceinline__ T load_global(const T* pointer) {
  return detail::load(pointer);
}

template <class T>
__device__ __forceinline__ void store_global(T* pointer, T value) {
  detail::store(pointer, value);
}

// Adds to a float that others add to as well, in any order.
__device__ __forceinline__ void add_global(float* pointer, float value) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(pointer), "f"(value) : "memory");
}

// What was there before, where other blocks add as well.
__device__ __forceinline__ int fetch_add_global(int* pointer, int value) {
  int before;
  asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(pointer), "r"(value)
               : "memory");
  return before;
}

// threadIdx.x, of which the compiler does not know that it stays: what a loop computes from it is not kept in
// registers from one turn to the next.
__device__ __forceinline__ int thread_of_this_turn() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

template <class T>
__device__ __forceinline__ T load_shared(const T* pointer) {
  return detail::load(pointer);
}

template <class T>
__device__ __forceinline__ void store_shared(T* pointer, T value) {
  detail::store(pointer, value);
}

// The block's dynamic shared memory as the kernel's struct; the launch asks for sizeof(Shared).
template <class Shared>
__device__ __forceinline__ Shared& shared_memory() {
  extern __shared__ __align__(1024) unsigned char glm_shared_memory[];
  return *reinterpret_cast<Shared*>(glm_shared_memory);
}

// Starts to copy 16 bytes, or zeros where not valid; in the group that the next commit closes.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(detail::shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all but the last kGroups committed groups of this thread. Others see them after a barrier.
template <int kGroups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// ---- matrices
// ------------------------------------------------------------------------------------------------

// ldmatrix: kCount 8x8 matrices of 16-bit elements. Lane 8m + i points to row i of matrix m; lane l gets
// elements 2(l%4), 2(l%4)+1 of row l/4 of each (kTranspose: of column l/4).
template <int kCount, bool kTranspose = false>
__device__ __forceinline__ void load_matrices(uint32_t (&f)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  const uint32_t address = detail::shared_address(row);
  if constexpr (kCount == 4 && !kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 2 && !kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(f[0]), "=r"(f[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(f[0]), "=r"(f[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (!kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(f[0])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(f[0])
                 : "r"(address)
                 : "memory");
  }
}

// D [16, 8] += A [16, 16] B [16, 8], T = bf16 or f16, sums in float. With g = lane/4 and t = lane%4:
//   a[0..3]  A rows g, g+8, g, g+8, columns 2t, 2t+1 (a[2], a[3]: 8 further)
//   b[0..1]  B rows 2t, 2t+1 (b[1]: 8 further), column g
//   d[0..3]  D row g columns 2t, 2t+1, then row g+8
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  if constexpr (std::is_same_v<T, bf16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// D [16, 8] += A [16, 8] B [8, 8] on the upper 19 bits of floats (see to_tf32).
//   a[0..3]  A rows g, g+8, g, g+8, column t (a[2], a[3]: t+4);  b[0..1]  B rows t, t+4, column g;  d as
//   above
__device__ __forceinline__ void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- numbers
// -------------------------------------------------------------------------------------------------

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return to_float(x); }
__device__ __forceinline__ float widen(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T narrow(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    T y;
    if constexpr (std::is_same_v<T, bf16>) {
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    } else {
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    }
    return y;
  }
}

// Two of them in one word.
template <class T>
__device__ __forceinline__ uint32_t narrow2(float low, float high) {
  uint32_t both;
  if constexpr (std::is_same_v<T, bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  }
  return both;
}

__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ int count_bits(uint32_t x) { return __popc(x); }

// 1 / x to 1 ulp; results below 2^-126 are zero.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^x to 2 ulp; results below 2^-126 are zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace glm::cuda
#endif

namespace glm::cuda {

// No launch has so many blocks, but the compiler cannot know. A branch on it ends a basic block: ptxas starts
// no load or product of what follows before it, where it would run out of registers for them.
__device__ __forceinline__ bool never() { return gridDim.x == 0x7fffffffu; }

// A float as the sum of a big and a small tf32, to 2^-22 of it: big big + big small + small big is the product
// of two to about as much ("3xTF32").
struct Tf32Pair {
  uint32_t big, small;

  __device__ __forceinline__ explicit Tf32Pair(float x) : big(to_tf32(x)) {
    small = to_tf32(x - std::bit_cast<float>(big));
  }
  // What the two leave of x.
  __device__ __forceinline__ uint32_t rest(float x) const {
    return std::bit_cast<uint32_t>(x - std::bit_cast<float>(big) - std::bit_cast<float>(small));
  }
};

}  // namespace glm::cuda
