// Two products in a row by one warpgroup, as attention has them: every form of cuda/wgmma.cuh, and, like
// matmul.cuh, there to be broken. Never shipped.
#pragma once

#include "cuda/attention/warpgroup_product.cuh"

namespace glm::cuda::testing {

enum class WarpgroupFault : int {
  none,
  early_read,       // uses the result of a product before it was waited for
  early_overwrite,  // replaces an operand in shared memory before the product was waited for
  reused_register,  // changes an operand in registers before the product was waited for
  not_waited,       // returns while a product runs
  not_published,    // starts a product on what other instructions have written, without the fence
};

template <class T, int kDepth, int kCols, int kOut>
struct WarpgroupShared {
  Panel<T, 64, kDepth> a;
  Panel<T, kCols, kDepth> b;
  Panel<T, kCols, kOut> c;
};

// out [64, kOut] = round(a [64, kDepth] b [kCols, kDepth]^T) c [kCols, kOut].
template <class T, int kDepth, int kCols, int kOut, WarpgroupFault kFault>
__global__ void __launch_bounds__(128) warpgroup_kernel(const T* a, const T* b, const T* c, float* out) {
  using Fault = WarpgroupFault;
  auto& shared = shared_memory<WarpgroupShared<T, kDepth, kCols, kOut>>();
  copy_rows<128>(shared.a, a, kDepth, 0, 0, 64, kDepth);
  copy_rows<128>(shared.b, b, kDepth, 0, 0, kCols, kDepth);
  copy_rows<128>(shared.c, c, kOut, 0, 0, kCols, kOut);
  copy_async_commit();
  copy_async_wait<0>();
  if (kFault != Fault::not_published) wgmma_publish();
  __syncthreads();

  float product[kCols / 8][4], sums[kOut / 8][4] = {};
  uint32_t left[kCols / 16][4];
  wgmma_begin(product);
  start_row_products<T, kCols>(product, shared.a, 0, shared.b);
  wgmma_end();
  if (kFault == Fault::early_overwrite) {
    __syncthreads();
    store_shared(shared.b.block[0][threadIdx.x % kCols], T{});
  }
  if (kFault != Fault::early_read) wgmma_wait<0>(product);
  narrow_rows<T, kCols>(left, product);
  wgmma_begin(left, sums);
  start_column_products<T, kCols>(sums, left, shared.c);
  wgmma_end();
  if (kFault == Fault::reused_register) left[0][0] = 0;
  if (kFault != Fault::not_waited) wgmma_wait<0>(sums, left);

  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int j = 0; j < kOut / 8; ++j)
    for (int i = 0; i < 4; ++i)
      store_global(out + (warp * 16 + lane / 4 + i / 2 * 8) * kOut + j * 8 + lane % 4 * 2 + i % 2,
                   sums[j][i]);
}

template <class T, int kDepth, int kCols, int kOut, WarpgroupFault kFault>
void warpgroup(const T* a, const T* b, const T* c, float* out) {
  launch(warpgroup_kernel<T, kDepth, kCols, kOut, kFault>, dim3{1, 1, 1}, dim3{128, 1, 1},
         sizeof(WarpgroupShared<T, kDepth, kCols, kOut>), nullptr, a, b, c, out);
}

}  // namespace glm::cuda::testing
