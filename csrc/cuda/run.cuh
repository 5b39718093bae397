// Neighbours of a row that move as one access, kept as they lie in memory until they are wanted as floats.
#pragma once

#include "cuda/ptx.cuh"

namespace glm::cuda {

// kRun neighbours of a row as they lie in memory: in whole words, since 16-bit values would take a register each.
template <class T, int kRun>
struct Run {
  static constexpr bool kWords = kRun * sizeof(T) % 4 == 0;
  using Word = std::conditional_t<kWords, uint32_t, T>;
  using Raw = Pack<Word, kRun * sizeof(T) / sizeof(Word)>;
  Raw raw;

  __device__ __forceinline__ void widen_to(float (&values)[kRun]) const {
    constexpr int kEach = sizeof(Word) / sizeof(T);  // values of a word
#pragma unroll
    for (int i = 0; i < kRun; i += kEach) {
      const auto some = std::bit_cast<Pack<T, kEach>>(raw.value[i / kEach]);
#pragma unroll
      for (int k = 0; k < kEach; ++k) values[i + k] = widen(some.value[k]);
    }
  }
};

template <class T, int kRun>
__device__ __forceinline__ Run<T, kRun> narrow_run(const float (&values)[kRun]) {
  Run<T, kRun> run;
  constexpr bool kPairs = sizeof(T) == 2 && kRun % 2 == 0;
#pragma unroll
  for (int i = 0; i < kRun; i += kPairs ? 2 : 1) {
    if constexpr (kPairs)
      run.raw.value[i / 2] = narrow2<T>(values[i], values[i + 1]);
    else
      run.raw.value[i] = std::bit_cast<typename Run<T, kRun>::Word>(narrow<T>(values[i]));
  }
  return run;
}

// Zeros where not inside.
template <int kRun, class T>
__device__ __forceinline__ Run<T, kRun> load_run(const T* place, bool inside) {
  Run<T, kRun> run = {};
  if (inside) run.raw = load_global(reinterpret_cast<const typename Run<T, kRun>::Raw*>(place));
  return run;
}

template <class T, int kRun>
__device__ __forceinline__ void store_run(T* place, const Run<T, kRun>& run) {
  store_global(reinterpret_cast<typename Run<T, kRun>::Raw*>(place), run.raw);
}

template <class T, int kRun>
__device__ __forceinline__ void store_run(T* place, const float (&values)[kRun]) {
  store_run(place, narrow_run<T>(values));
}

}  // namespace glm::cuda
