// Tile classes against the definition of the mask, for every small mask and tile.
#include "core/span_mask.h"

#include "tests/core/tests.h"
#include "tests/expect.h"

namespace glm::test {
namespace {

constexpr int64_t kKeys = 7;

bool sees(const SpanMask& mask, int64_t i, int64_t j) {
  const int64_t place = mask.row_offset + i;
  return mask.begin <= j && j < mask.length && (j < mask.prefix || j <= place);
}

void check_mask(const SpanMask& mask, int64_t rows) {
  int64_t pairs = 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < kKeys; ++j) {
      const bool seen = sees(mask, i, j);
      pairs += seen;
      expect(seen == (mask.begin <= j && j < mask.row_end(i)), "row_end");
      expect(!seen || i >= mask.first_row(j), "first_row: an earlier row sees the key");
    }
    if (i > 0) expect(mask.row_end(i) >= mask.row_end(i - 1), "row_end grows");
  }
  expect(mask.pairs(rows) == pairs, "pairs");

  for (int64_t m0 = 0; m0 < rows; ++m0) {
    for (int64_t m1 = m0 + 1; m1 <= rows; ++m1) {
      for (int64_t j = mask.begin; j < kKeys; ++j) {
        bool all = true, any = false;
        for (int64_t i = m0; i < m1; ++i) {
          all = all && sees(mask, i, j);
          any = any || sees(mask, i, j);
        }
        expect(all == (j < mask.full_end(m0)), "full_end");
        expect(any == (j < mask.seen_end(m1)), "seen_end");
      }
    }
  }

  for (int64_t n0 = mask.begin; n0 < mask.length; ++n0) {
    for (int64_t n1 = n0 + 1; n1 <= mask.length; ++n1) {
      for (int64_t i = 0; i < rows; ++i) {
        bool all = true, any = false;
        for (int64_t j = n0; j < n1; ++j) {
          all = all && sees(mask, i, j);
          any = any || sees(mask, i, j);
        }
        expect(any == (i >= mask.first_row(n0)), "first_row");
        expect(all == (i >= mask.first_full_row(n1)), "first_full_row");
      }
    }
  }
}

}  // namespace

void test_span_mask() {
  for (int64_t length = 0; length <= kKeys; ++length) {
    for (int64_t prefix = 0; prefix <= length; ++prefix) {
      for (int64_t begin = 0; begin <= length; ++begin) {
        for (int64_t offset = 0; offset <= length; ++offset)
          check_mask({prefix, length, begin, offset}, kKeys - offset);
      }
    }
  }
}

}  // namespace glm::test
