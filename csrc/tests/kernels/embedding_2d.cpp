#include "ops/embedding_2d.h"

#include "cpu/kernels.h"
#include "tests/kernels/tests.h"

namespace glm::test {
namespace {

constexpr int64_t kTableRows[3] = {11, 5, 3};
constexpr float kBefore[3] = {0, -2, 0.5f};  // what a gradient holds that is added to; 0 where none is

template <class T>
void check(int64_t rows, int64_t width, const Dropout& dropout) {
  std::vector<int64_t> places[3];
  std::vector<T> tables[3], grads[3];
  Embedding2DForward forward{};
  Embedding2DBackward backward{};
  for (int which = 0; which < 3; ++which) {
    const int64_t table_rows = kTableRows[which];
    places[which] = ids(rows, 2 * which + 1, table_rows);
    tables[which] = random<T>(table_rows * width, which);
    grads[which] = unwritten<T>(table_rows * width);
    if (kBefore[which] != 0) grads[which].assign(grads[which].size(), stored<T>(kBefore[which]));
    forward.lookups[which] = {places[which].data(), table_rows, tables[which].data()};
    backward.lookups[which] = {places[which].data(), table_rows, grads[which].data(), kBefore[which] != 0};
  }
  auto out = unwritten<T>(rows * width);
  forward.dtype = kDType<T>;
  forward.rows = rows;
  forward.width = width;
  forward.out = out.data();
  forward.dropout = dropout;
  forward.threads = 2;
  expect(cpu::kernels().embedding_2d_forward(forward).which == -1, "every id is in its table");

  const auto grad = random<T>(rows * width, 7);
  std::vector<int64_t> order(static_cast<size_t>(3 * rows)), first(11 + 5 + 3 + 3 * 2);
  auto pieces = unwritten<Compute<T>>(rows / kEmbeddingPieceRows * width);
  backward.dtype = kDType<T>;
  backward.rows = rows;
  backward.width = width;
  backward.grad = grad.data();
  backward.order = order.data();
  backward.first = first.data();
  std::vector<uint16_t> keep(static_cast<size_t>(rows * embedding_keep_words(width)));
  backward.pieces = pieces.data();
  backward.keep = keep.data();
  backward.dropout = dropout;
  backward.threads = 2;
  expect(cpu::kernels().embedding_2d_backward(backward).which == -1, "every id is in its table");

  std::vector<double> sums[3];
  for (int which = 0; which < 3; ++which) sums[which].assign(grads[which].size(), kBefore[which]);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t e = 0; e < width; ++e) {
      const double factor = row_factor(dropout, n, e);
      double sum = 0;
      for (int which = 0; which < 3; ++which) {
        const int64_t place = places[which][n] * width + e;
        sum += value(tables[which][place]);
        sums[which][place] += factor * value(grad[n * width + e]);
      }
      expect_close(out[n * width + e], factor * sum, 3, "out");
    }
  }
  for (int which = 0; which < 3; ++which) {
    for (size_t i = 0; i < sums[which].size(); ++i)
      expect_close(grads[which][i], sums[which][i], static_cast<double>(rows), "table gradient");
  }

  places[1][rows - 1] = kTableRows[1];
  const EmbeddingFault fault = cpu::kernels().embedding_2d_forward(forward);
  expect(fault.which == 1 && fault.row == rows - 1, "the id outside its table is found");
}

}  // namespace

void test_embedding_2d() {
  for_each_dtype([]<class T>(Type<T>) {
    for (const Dropout dropout : {Dropout{0.0, 0}, Dropout{0.3, 20260101}}) {
      check<T>(1, 1, dropout);
      check<T>(13, 7, dropout);
      check<T>(300, 131, dropout);  // pieces of the frequent ids
    }
  });
}

}  // namespace glm::test
