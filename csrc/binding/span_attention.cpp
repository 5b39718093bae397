#include "ops/span_attention.h"

#include "binding/register.h"
#include "binding/target.h"
#include "binding/view.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace glm {
namespace {

AttentionRows rows_of(const View& x) {  // [B, H, S, D] or [N, H, D]
  return x.rank == 4 ? AttentionRows{x.data, x.stride[0], x.stride[1], x.stride[2]}
                     : AttentionRows{x.data, 0, x.stride[1], x.stride[0]};
}

AttentionRows statistics_of(const View& x) {  // [B, H, S] or [H, N]
  return x.rank == 3 ? AttentionRows{x.data, x.stride[0], x.stride[1], x.stride[2]}
                     : AttentionRows{x.data, 0, x.stride[0], x.stride[1]};
}

void check_range(const char* name, const int64_t* values, int64_t count, int64_t most) {
  for (int64_t b = 0; values != nullptr && b < count; ++b)
    GLM_CHECK(0 <= values[b] && values[b] <= most, name, ": expected values in [0, ", most,
              "], the number of keys, got ", values[b], " for sequence ", b);
}

void check_packed(const SpanAttention& p) {
  const int64_t* cu = p.cu_seqlens;
  GLM_CHECK(cu[0] == 0, "cu_seqlens: expected the first value to be 0, got ", cu[0]);
  for (int64_t b = 0; b < p.batch; ++b) {
    GLM_CHECK(cu[b] <= cu[b + 1], "cu_seqlens: expected values that never fall, got ", cu[b], " then ",
              cu[b + 1]);
    const int64_t length = cu[b + 1] - cu[b];
    GLM_CHECK(0 <= p.prefix_len[b] && p.prefix_len[b] <= length, "prefix_len: expected a value in [0, ",
              length, "], the length of sequence ", b, ", got ", p.prefix_len[b]);
  }
  GLM_CHECK(cu[p.batch] <= p.rows, "cu_seqlens: expected at most ", p.rows, ", the rows of query, got ",
            cu[p.batch]);
}

SpanAttention problem_of(const View& query, const View& key, const View& value, const View& prefix_len,
                         const View& seq_len, const View& start, const View& cu_seqlens, double scale,
                         double dropout_p, uint64_t seed, Target target) {
  const bool packed = cu_seqlens.present();
  const SpanAttention p = {
      .dtype = query.dtype,
      .batch = prefix_len.shape[0],
      .heads = query.shape[1],
      .kv_heads = key.shape[1],
      .head_dim = query.shape[query.rank - 1],
      .rows = query.shape[packed ? 0 : 2],
      .keys = key.shape[packed ? 0 : 2],
      .prefix_len = static_cast<const int64_t*>(prefix_len.data),
      .seq_len = static_cast<const int64_t*>(seq_len.data),
      .start = static_cast<const int64_t*>(start.data),
      .cu_seqlens = static_cast<const int64_t*>(cu_seqlens.data),
      .query = rows_of(query),
      .key = rows_of(key),
      .value = rows_of(value),
      .scale = scale,
      .dropout = {dropout_p, seed},
      .threads = target.threads,
  };
  if (target.gpu) return p;  // to look at the lengths would be to wait for the stream: kernels clamp them
  if (packed) {
    check_packed(p);
  } else {
    check_range("prefix_len", p.prefix_len, p.batch, p.keys);
    check_range("seq_len", p.seq_len, p.batch, p.keys);
    check_range("start", p.start, p.batch, p.keys);
  }
  return p;
}

void forward(View query, View key, View value, View prefix_len, View seq_len, View start, View cu_seqlens,
             View out, View lse, View workspace, double scale, double dropout_p, uint64_t seed,
             Target target) {
  run(target, cpu::kernels().span_attention_forward, cuda::kernels().span_attention_forward,
      {
          .problem = problem_of(query, key, value, prefix_len, seq_len, start, cu_seqlens, scale, dropout_p,
                                seed, target),
          .out = rows_of(out),
          .lse = statistics_of(lse),
          .workspace = static_cast<float*>(workspace.data),
      });
}

void backward(View query, View key, View value, View prefix_len, View seq_len, View start, View cu_seqlens,
              View out, View lse, View grad_out, View grad_lse, View grad_query, View grad_key,
              View grad_value, View workspace, double scale, double dropout_p, uint64_t seed, int way,
              Target target) {
  run(target, cpu::kernels().span_attention_backward, cuda::kernels().span_attention_backward,
      {
          .problem = problem_of(query, key, value, prefix_len, seq_len, start, cu_seqlens, scale, dropout_p,
                                seed, target),
          .out = rows_of(out),
          .lse = statistics_of(lse),
          .grad_out = rows_of(grad_out),
          .grad_lse = statistics_of(grad_lse),
          .grad_query = rows_of(grad_query),
          .grad_key = rows_of(grad_key),
          .grad_value = rows_of(grad_value),
          .way = static_cast<GradQuery>(way),
          .workspace = static_cast<float*>(workspace.data),
      });
}

int64_t workspace(bool backward, View query, int64_t batch, int64_t kv_heads, int64_t keys, bool packed,
                  int way, Target target) {
  const cuda::Kernels& kernels = cuda::kernels();
  if (!target.gpu || kernels.span_attention_forward_workspace == nullptr) return 0;
  static const int64_t some = 0;  // only whether there are any is asked
  SpanAttention p = {};
  p.dtype = query.dtype;
  p.batch = batch;
  p.heads = query.shape[1];
  p.kv_heads = kv_heads;
  p.head_dim = query.shape[query.rank - 1];
  p.rows = query.shape[packed ? 0 : 2];
  p.keys = keys;
  p.cu_seqlens = packed ? &some : nullptr;
  const cuda::DeviceGuard guard(target.device);
  return backward ? kernels.span_attention_backward_workspace(p, static_cast<GradQuery>(way))
                  : kernels.span_attention_forward_workspace(p);
}

}  // namespace

void register_span_attention(py::module_& m) {
  m.def("span_attention_forward", &forward, "query"_a, "key"_a, "value"_a, "prefix_len"_a, "seq_len"_a,
        "start"_a, "cu_seqlens"_a, "out"_a, "lse"_a, "workspace"_a, "scale"_a, "dropout_p"_a, "seed"_a,
        "target"_a);
  m.def("span_attention_backward", &backward, "query"_a, "key"_a, "value"_a, "prefix_len"_a, "seq_len"_a,
        "start"_a, "cu_seqlens"_a, "out"_a, "lse"_a, "grad_out"_a, "grad_lse"_a, "grad_query"_a, "grad_key"_a,
        "grad_value"_a, "workspace"_a, "scale"_a, "dropout_p"_a, "seed"_a, "way"_a, "target"_a);
  m.def("span_attention_workspace", &workspace, "backward"_a, "query"_a, "batch"_a, "kv_heads"_a, "keys"_a,
        "packed"_a, "way"_a, "target"_a, "Floats that the workspace must hold; 0: it takes none.");
}

}  // namespace glm
