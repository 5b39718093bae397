#include "simt/tests/bindings.h"

#include "binding/view.h"
#include "cuda/attention/tile.cuh"
#include "simt/tests/matmul.cuh"
#include "simt/tests/primitives.cuh"
#include "simt/tests/warpgroup.cuh"

namespace py = pybind11;
using namespace pybind11::literals;

namespace glm::cuda::testing {
namespace {

constexpr dim3 kOneBlock{1, 1, 1}, kOneWarp{kWarp, 1, 1};

template <Fault kFault>
void bind_matmul(py::module_& m, const char* name) {
  m.def(
      name,
      [](View a, View b, View c) {
        matmul<kFault>(
            {static_cast<int>(a.shape[0]), static_cast<int>(b.shape[0]), static_cast<int>(a.shape[1]),
             static_cast<const bf16*>(a.data), static_cast<const bf16*>(b.data), static_cast<float*>(c.data)},
            nullptr);
      },
      "a"_a, "b"_a, "c"_a);
}

template <class T, int kDepth, int kCols, int kOut, WarpgroupFault kFault = WarpgroupFault::none>
void bind_warpgroup(py::module_& m, const char* name) {
  m.def(
      name,
      [](View a, View b, View c, View out) {
        warpgroup<T, kDepth, kCols, kOut, kFault>(
            static_cast<const T*>(a.data), static_cast<const T*>(b.data), static_cast<const T*>(c.data),
            static_cast<float*>(out.data));
      },
      "a"_a, "b"_a, "c"_a, "out"_a);
}

template <int kCount, bool kTranspose>
void run_load_matrices(View tile, View words) {
  launch(load_matrices_kernel<kCount, kTranspose>, kOneBlock, kOneWarp, kCount * 128, nullptr,
         static_cast<const uint16_t*>(tile.data), static_cast<uint32_t*>(words.data));
}

template <class T>
void run_mma(View a, View b, View d) {
  launch(mma_kernel<T>, kOneBlock, kOneWarp, 0, nullptr, static_cast<const T*>(a.data),
         static_cast<const T*>(b.data), static_cast<float*>(d.data));
}

template <class T>
void run_round(View x, View back) {
  launch(round_kernel<T>, kOneBlock, kOneWarp, 0, nullptr, static_cast<const float*>(x.data),
         static_cast<float*>(back.data), static_cast<int>(x.numel()));
}

void run_tile_list(View cu_seqlens, View prefix_len, View tiles, int64_t rows, int tile_rows, bool keys) {
  SpanAttention p = {};
  p.batch = prefix_len.shape[0];
  p.rows = rows;
  p.cu_seqlens = static_cast<const int64_t*>(cu_seqlens.data);
  p.prefix_len = static_cast<const int64_t*>(prefix_len.data);
  const int64_t size = TileList::size(p, tile_rows);
  GLM_CHECK(tiles.shape[0] == size, "tiles: expected ", size, " of them");
  launch_tile_list(p, keys ? TilesOf::keys : TilesOf::rows, tile_rows,
                   {static_cast<Pack<int, 2>*>(tiles.data)}, nullptr);
}

}  // namespace

void bind(py::module_& m) {
  bind_matmul<Fault::none>(m, "matmul_none");
  bind_matmul<Fault::missing_barrier>(m, "matmul_missing_barrier");
  bind_matmul<Fault::weak_wait>(m, "matmul_weak_wait");
  bind_matmul<Fault::out_of_bounds>(m, "matmul_out_of_bounds");
  bind_matmul<Fault::unwritten_output>(m, "matmul_unwritten_output");
  bind_matmul<Fault::shared_race>(m, "matmul_shared_race");
  bind_matmul<Fault::divergent_barrier>(m, "matmul_divergent_barrier");
  bind_matmul<Fault::bank_conflict>(m, "matmul_bank_conflict");

  bind_warpgroup<bf16, 64, 64, 64>(m, "warpgroup_none");
  bind_warpgroup<bf16, 128, 128, 128>(m, "warpgroup_128");
  bind_warpgroup<f16, 128, 32, 64>(m, "warpgroup_float16");
  bind_warpgroup<bf16, 64, 64, 64, WarpgroupFault::early_read>(m, "warpgroup_early_read");
  bind_warpgroup<bf16, 64, 64, 64, WarpgroupFault::early_overwrite>(m, "warpgroup_early_overwrite");
  bind_warpgroup<bf16, 64, 64, 64, WarpgroupFault::reused_register>(m, "warpgroup_reused_register");
  bind_warpgroup<bf16, 64, 64, 64, WarpgroupFault::not_waited>(m, "warpgroup_not_waited");
  bind_warpgroup<bf16, 64, 64, 64, WarpgroupFault::not_published>(m, "warpgroup_not_published");

  m.def("load_matrices_1", &run_load_matrices<1, false>, "tile"_a, "words"_a);
  m.def("load_matrices_2", &run_load_matrices<2, false>, "tile"_a, "words"_a);
  m.def("load_matrices_4", &run_load_matrices<4, false>, "tile"_a, "words"_a);
  m.def("load_matrices_1_transposed", &run_load_matrices<1, true>, "tile"_a, "words"_a);
  m.def("load_matrices_2_transposed", &run_load_matrices<2, true>, "tile"_a, "words"_a);
  m.def("load_matrices_4_transposed", &run_load_matrices<4, true>, "tile"_a, "words"_a);
  m.def("mma_bfloat16", &run_mma<bf16>, "a"_a, "b"_a, "d"_a);
  m.def("mma_float16", &run_mma<f16>, "a"_a, "b"_a, "d"_a);
  m.def(
      "mma_tf32",
      [](View a, View b, View d) {
        launch(mma_tf32_kernel, kOneBlock, kOneWarp, 0, nullptr, static_cast<const float*>(a.data),
               static_cast<const float*>(b.data), static_cast<float*>(d.data));
      },
      "a"_a, "b"_a, "d"_a);
  m.def(
      "shuffles",
      [](View x, View out, int amount, int width) {
        launch(shuffle_kernel, kOneBlock, kOneWarp, 0, nullptr, static_cast<const float*>(x.data),
               static_cast<float*>(out.data), amount, width);
      },
      "x"_a, "out"_a, "amount"_a, "width"_a);
  m.def("tile_list", &run_tile_list, "cu_seqlens"_a, "prefix_len"_a, "tiles"_a, "rows"_a, "tile_rows"_a,
        "keys"_a);
  m.def("round_bfloat16", &run_round<bf16>, "x"_a, "back"_a);
  m.def("round_float16", &run_round<f16>, "x"_a, "back"_a);
}

}  // namespace glm::cuda::testing
