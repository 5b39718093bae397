// The three macros of the project live here: GLM_HD, GLM_CHECK, and (CUDA builds only) GLM_CUDA_CHECK in
// cuda/.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

// A function for host and device. On the host it is always inlined: each instruction set compiles its own
// copy, and none is left behind for the linker to hand to a machine that cannot run it.
#if defined(__CUDACC__)
#define GLM_HD __host__ __device__ __forceinline__
#else
#define GLM_HD [[gnu::always_inline]] inline
#endif

namespace glm {

template <class... Parts>
[[noreturn]] [[gnu::cold]] [[gnu::noinline]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace glm

// Throws std::invalid_argument (ValueError in Python). Say what was expected and what came.
#define GLM_CHECK(condition, ...)               \
  do {                                          \
    if (!(condition)) ::glm::fail(__VA_ARGS__); \
  } while (false)
