// Chooses the instruction set once, at the first call.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>

#include "core/check.h"
#include "cpu/kernels.h"

namespace glm::cpu {

// Built sets, best first: CMakeLists.txt defines GLM_HAVE_ of each.
#define GLM_DECLARE(isa)         \
  namespace isa {                \
  extern const Kernels kKernels; \
  }
#if defined(GLM_HAVE_AVX512BF16)
namespace avx512bf16 {
const Kernels& kernels();  // cpu/avx512bf16.cpp
}
#endif
#if defined(GLM_HAVE_AVX512)
GLM_DECLARE(avx512)
#endif
#if defined(GLM_HAVE_AVX2)
GLM_DECLARE(avx2)
#endif
#if defined(GLM_HAVE_NEON)
GLM_DECLARE(neon)
#endif
GLM_DECLARE(scalar)
#undef GLM_DECLARE

namespace {

struct Candidate {
  const Kernels* kernels;
  bool supported;
};

#if defined(GLM_HAVE_AVX2)
// Clang's __builtin_cpu_supports does not know it before version 16.
bool has_f16c() {
  unsigned eax, ebx, ecx = 0, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

#if defined(GLM_HAVE_AVX512)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

std::vector<Candidate> candidates() {
  return {
#if defined(GLM_HAVE_AVX512BF16)
      {&avx512bf16::kernels(), has_avx512() && __builtin_cpu_supports("avx512bf16")},
#endif
#if defined(GLM_HAVE_AVX512)
      {&avx512::kKernels, has_avx512()},
#endif
#if defined(GLM_HAVE_AVX2)
      {&avx2::kKernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()},
#endif
#if defined(GLM_HAVE_NEON)
      {&neon::kKernels, true},
#endif
      {&scalar::kKernels, true},
  };
}

const Kernels& choose() {
  const char* forced = std::getenv("GLM_FORCE_ISA");
  std::string supported;
  for (const Candidate& candidate : candidates()) {
    if (!candidate.supported) continue;
    if (forced == nullptr || forced[0] == '\0' || std::string(forced) == candidate.kernels->isa)
      return *candidate.kernels;
    supported += std::string(supported.empty() ? "" : ", ") + candidate.kernels->isa;
  }
  fail("GLM_FORCE_ISA: expected one of ", supported, " on this machine, got \"", forced, "\"");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::vector<std::string> isas_built() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates()) names.push_back(candidate.kernels->isa);
  return names;
}

std::vector<std::string> isas_supported() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates()) {
    if (candidate.supported) names.push_back(candidate.kernels->isa);
  }
  return names;
}

}  // namespace glm::cpu
