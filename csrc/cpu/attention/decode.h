#pragma once

#include "ops/span_attention.h"

namespace glm::cpu::GLM_ISA {

// Forward for a few query rows (decodes() of layout.h).
void decode(const SpanAttentionForward& params);

}  // namespace glm::cpu::GLM_ISA
