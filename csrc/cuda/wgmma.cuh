// The matrix product of a warpgroup on Hopper (sm_90a): D [64, N] += A [64, 16] B [16, N], in the background.
// A warpgroup is four warps, the first of a number divisible by four; warp w of it has rows 16 w to 16 w + 15 of
// D and A, in the layout of mma_16x8x16. A is in registers or in shared memory, B in shared memory: rows of
// 128 bytes with their chunks of 16 bytes permuted (Panel), from a multiple of 1024 bytes on.
//
//   wgmma_begin(d...)     before the first product, after d (or A) was touched
//   wgmma(...)            any number of them
//   wgmma_end()           closes a group
//   wgmma_wait<n>(d...)   until all but the last n groups are done: only then may d be read, the registers of A
//                         written, what was in shared memory replaced
//
// What other instructions have written to shared memory, cp.async too, must be fenced for the product to see it:
// each writing thread calls wgmma_publish(), and then comes a barrier.
#pragma once

#include "cuda/ptx.cuh"

namespace glm::cuda {

// How 16 depths of an operand lie in shared memory.
enum class Major {
  depth,  // rows of A, or columns of B, one after the other: 16 depths are 32 bytes of each. Eight in 1024 bytes
  row,  // depth after depth, each 64 rows of A or columns of B; the next 64 are `next` bytes further
};

struct WgmmaOperand {
  const void* start;
  int next = 0;  // Major::row and more than 64 columns
};

}  // namespace glm::cuda

#if !defined(__CUDACC__)
#include "simt/wgmma.h"
#else

namespace glm::cuda {

// Compiled for another architecture, kernels of warpgroups only call wrong_architecture().
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;
#endif

// Nothing launches them there (has_wgmma); if something does, it is an error, not results that nobody wrote.
__device__ __forceinline__ void wrong_architecture() { __trap(); }

namespace detail {

// PTX ISA, "Matrix descriptor": address, leading and stride offset in units of 16 bytes, swizzle of 128 bytes.
__device__ __forceinline__ uint64_t descriptor(const WgmmaOperand& x) {
  constexpr uint64_t kEight = 1024 >> 4;  // from eight rows (columns, depths) to the next
  return uint64_t{1} << 62 | kEight << 32 | static_cast<uint64_t>((x.next & 0x3ffff) >> 4) << 16 |
         (shared_address(x.start) & 0x3ffff) >> 4;
}

// The compiler may not move uses of these registers to before this place.
template <class T, int kN>
__device__ __forceinline__ void pin(T (&x)[kN][4]) {
#pragma unroll
  for (int k = 0; k < kN; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        asm volatile("" : "+f"(x[k][i])::"memory");
      } else {
        asm volatile("" : "+r"(x[k][i])::"memory");
      }
    }
}

}  // namespace detail

template <class... Registers>
__device__ __forceinline__ void wgmma_begin(Registers&... registers) {
  (detail::pin(registers), ...);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void wgmma_end() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

template <int kGroups, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
#endif
  (detail::pin(registers), ...);
}

__device__ __forceinline__ void wgmma_publish() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// D's registers as operands of an asm statement, and their places in its text.
#define GLM_WGMMA_8(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define GLM_WGMMA_D_32(j) GLM_WGMMA_8(j), GLM_WGMMA_8(j + 1), GLM_WGMMA_8(j + 2), GLM_WGMMA_8(j + 3)
#define GLM_WGMMA_D_64(j) GLM_WGMMA_D_32(j), GLM_WGMMA_D_32(j + 4)
#define GLM_WGMMA_D_128(j) GLM_WGMMA_D_64(j), GLM_WGMMA_D_64(j + 8)
#define GLM_WGMMA_TEXT_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define GLM_WGMMA_TEXT_64 \
  GLM_WGMMA_TEXT_32       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GLM_WGMMA_TEXT_128                                                                                 \
  GLM_WGMMA_TEXT_64                                                                                        \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// One statement for each N and type; what follows D is numbered from N / 2 on.
#define GLM_WGMMA_SHARED(N, TYPE, A, B, ADDS, MAJOR_A, MAJOR_B)                                        \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " ADDS                                                  \
               ", 0;\n"                                                                                \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" GLM_WGMMA_TEXT_##N \
               "}, " A ", " B ", p, 1, 1, " MAJOR_A ", " MAJOR_B "; }"                                 \
               : GLM_WGMMA_D_##N(0)                                                                    \
               : "l"(detail::descriptor(a)), "l"(detail::descriptor(b)), "r"(kAdds ? 1 : 0),           \
                 "n"(kMajorA == Major::row ? 1 : 0), "n"(kMajorB == Major::row ? 1 : 0)                \
               : "memory")
#define GLM_WGMMA_REGISTERS(N, TYPE, A, B, ADDS, MAJOR_B)                                                    \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " ADDS                                                        \
               ", 0;\n"                                                                                      \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" GLM_WGMMA_TEXT_##N       \
               "}, {" A "}, " B ", p, 1, 1, " MAJOR_B "; }"                                                  \
               : GLM_WGMMA_D_##N(0)                                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(detail::descriptor(b)), "r"(kAdds ? 1 : 0), \
                 "n"(kMajorB == Major::row ? 1 : 0)                                                          \
               : "memory")

// D = A B, or D += A B with kAdds; A and B in shared memory.
template <class T, Major kMajorA, Major kMajorB, bool kAdds, int kN>
__device__ __forceinline__ void wgmma(float (&d)[kN][4], const WgmmaOperand& a, const WgmmaOperand& b) {
  static_assert(kN == 4 || kN == 8 || kN == 16);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr bool kBf16 = std::is_same_v<T, bf16>;
  if constexpr (kN == 4 && kBf16) GLM_WGMMA_SHARED(32, "bf16", "%16", "%17", "%18", "%19", "%20");
  if constexpr (kN == 4 && !kBf16) GLM_WGMMA_SHARED(32, "f16", "%16", "%17", "%18", "%19", "%20");
  if constexpr (kN == 8 && kBf16) GLM_WGMMA_SHARED(64, "bf16", "%32", "%33", "%34", "%35", "%36");
  if constexpr (kN == 8 && !kBf16) GLM_WGMMA_SHARED(64, "f16", "%32", "%33", "%34", "%35", "%36");
  if constexpr (kN == 16 && kBf16) GLM_WGMMA_SHARED(128, "bf16", "%64", "%65", "%66", "%67", "%68");
  if constexpr (kN == 16 && !kBf16) GLM_WGMMA_SHARED(128, "f16", "%64", "%65", "%66", "%67", "%68");
#endif
}

// The same with A in registers.
template <class T, Major kMajorB, bool kAdds, int kN>
__device__ __forceinline__ void wgmma(float (&d)[kN][4], const uint32_t (&a)[4], const WgmmaOperand& b) {
  static_assert(kN == 4 || kN == 8 || kN == 16);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr bool kBf16 = std::is_same_v<T, bf16>;
  if constexpr (kN == 4 && kBf16) GLM_WGMMA_REGISTERS(32, "bf16", "%16, %17, %18, %19", "%20", "%21", "%22");
  if constexpr (kN == 4 && !kBf16) GLM_WGMMA_REGISTERS(32, "f16", "%16, %17, %18, %19", "%20", "%21", "%22");
  if constexpr (kN == 8 && kBf16) GLM_WGMMA_REGISTERS(64, "bf16", "%32, %33, %34, %35", "%36", "%37", "%38");
  if constexpr (kN == 8 && !kBf16) GLM_WGMMA_REGISTERS(64, "f16", "%32, %33, %34, %35", "%36", "%37", "%38");
  if constexpr (kN == 16 && kBf16)
    GLM_WGMMA_REGISTERS(128, "bf16", "%64, %65, %66, %67", "%68", "%69", "%70");
  if constexpr (kN == 16 && !kBf16)
    GLM_WGMMA_REGISTERS(128, "f16", "%64, %65, %66, %67", "%68", "%69", "%70");
#endif
}

#undef GLM_WGMMA_SHARED
#undef GLM_WGMMA_REGISTERS
#undef GLM_WGMMA_TEXT_32
#undef GLM_WGMMA_TEXT_64
#undef GLM_WGMMA_TEXT_128
#undef GLM_WGMMA_D_32
#undef GLM_WGMMA_D_64
#undef GLM_WGMMA_D_128
#undef GLM_WGMMA_8

}  // namespace glm::cuda
#endif
