// What this machine reaches, so that a speed can be stated as a share of it: float multiply-adds a second.
#include <omp.h>

#include "cpu/declarations.h"
#include "cpu/simd.h"

namespace glm::cpu::GLM_ISA {
namespace {

constexpr int kChains = 12;  // independent sums: more than latency * units of any machine here
constexpr int64_t kSteps = 1 << 20;

// Multiply-adds in registers alone. Returns the sum, so that the work cannot be dropped.
[[gnu::noinline]] float multiply_add_loop() {
  VecF sum[kChains];
  for (VecF& s : sum) s = broadcast(1.0f);
  const VecF factor = broadcast(0.9999f), addend = broadcast(1e-4f);
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (VecF& s : sum) s = fma(s, factor, addend);
  }
  VecF total = {};
  for (const VecF& s : sum) total += s;
  return reduce_add(total);
}

}  // namespace

// GFLOP/s of `threads` threads: the best of a few rounds of about 10 ms.
double fma_peak(int threads) {
  double best = 0.0;
  for (int round = 0; round < 8; ++round) {
    const double begin = omp_get_wtime();
    float sum = 0.0f;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    sum += multiply_add_loop();
    const double seconds = omp_get_wtime() - begin;
    const double gflops = 2.0 * kChains * kLanes<float> * kSteps * threads / seconds * 1e-9;
    if (sum == sum) best = gflops > best ? gflops : best;  // reading the sum keeps the loop
  }
  return best;
}

}  // namespace glm::cpu::GLM_ISA
