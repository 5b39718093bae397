#pragma once

namespace glm::test {

void test_dtype();
void test_gelu();
void test_philox();
void test_span_mask();

}  // namespace glm::test
