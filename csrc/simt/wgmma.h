// The host bodies of cuda/wgmma.cuh. A warp computes its 16 rows of D by itself, since no warp reads what another
// one has in registers: at once, or, where copies are deferred (Options), only when the group is waited for, as
// late as the hardware may.
#pragma once

#include <array>
#include <limits>

#include "simt/ptx.h"

namespace glm::cuda {

inline constexpr bool kHasWgmma = true;
inline void wrong_architecture() {}

namespace detail {

// Element (row, depth) of an operand in shared memory, read for the calling lane's warp.
template <class T, Major kMajor>
float wgmma_element(const WgmmaOperand& x, int row, int depth, Site site) {
  const auto* shared = simt::machine().shared().data();
  const auto start = static_cast<const unsigned char*>(x.start) - shared;
  const int64_t place = kMajor == Major::depth
                            ? start + row / 8 * 1024 + row % 8 * 128 + depth * 2
                            : start + row / 64 * x.next + depth / 8 * 1024 + depth % 8 * 128 + row % 64 * 2;
  const unsigned char* address = shared + (place ^ (place >> 7 & 7) << 4);
  simt::machine().shared().read_published(address, 2, site);
  return to_float(*reinterpret_cast<const T*>(address));
}

struct WgmmaSlot {
  float* d;           // [kN][4]
  const uint32_t* a;  // [4], or null
  simt::Thread* thread;
};

// D [16, 8 kN] = or += A [16, 16] B [16, 8 kN] of one warp.
template <class T, Major kMajorB, bool kAdds, int kN, class A>
void wgmma_rows(const std::array<WgmmaSlot, simt::kWarpSize>& lanes, const A& a, const WgmmaOperand& b,
                Site site) {
  MmaLine<16> left[16], right;
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k) left[i].set(k, a(i, k));
  for (int j = 0; j < 8 * kN; ++j) {
    for (int k = 0; k < 16; ++k) right.set(k, wgmma_element<T, kMajorB>(b, j, k, site));
    for (int i = 0; i < 16; ++i) {
      float& d = lanes[static_cast<size_t>(i % 8 * 4 + j % 8 / 2)].d[j / 8 * 4 + i / 8 * 2 + j % 2];
      d = mma_sum(kAdds ? d : 0.0f, left[i], right);
    }
  }
}

// What d holds from the start of a product on is the product's: nothing that was there before is right.
template <int kN>
void spoil(float (&d)[kN][4]) {
  for (auto& columns : d)
    for (float& element : columns) element = std::numeric_limits<float>::quiet_NaN();
}

// Runs body(lanes) for the warp now, or when its group is waited for.
template <class Body>
void wgmma_issue(float* d, const uint32_t* a, Site site, const Body& body) {
  WgmmaSlot slot{d, a, &simt::this_thread()};
  simt::warp_collective("wgmma", simt::kFullMask, slot, site, [&](WgmmaSlot* const(&lanes)[simt::kWarpSize]) {
    std::array<WgmmaSlot, simt::kWarpSize> slots;
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = *lanes[i];
    lanes[0]->thread->products.issue([slots, body] { body(slots); }, site);
  });
}

template <class Body>
void wgmma_group(const char* what, Site site, const Body& body) {
  simt::Thread* self = &simt::this_thread();
  simt::warp_collective(what, simt::kFullMask, *self, site,
                        [&](simt::Thread* const(&lanes)[simt::kWarpSize]) { body(lanes[0]->products); });
}

}  // namespace detail

template <class... Registers>
void wgmma_begin(Registers&...) {}

inline void wgmma_end(Site site = Site::current()) {
  detail::wgmma_group("wgmma.commit_group", site, [](simt::AsyncProducts& products) { products.commit(); });
}

template <int kGroups, class... Registers>
void wgmma_wait(Registers&...) {
  detail::wgmma_group("wgmma.wait_group", Site::current(),
                      [](simt::AsyncProducts& products) { products.wait_all_but(kGroups); });
}

inline void wgmma_publish() { simt::machine().shared().publish(); }

template <class T, Major kMajorA, Major kMajorB, bool kAdds, int kN>
void wgmma(float (&d)[kN][4], const WgmmaOperand& a, const WgmmaOperand& b, Site site = Site::current()) {
  const int first_row = simt::this_thread().warp % 4 * 16;
  if constexpr (!kAdds) detail::spoil(d);
  detail::wgmma_issue(d[0], nullptr, site, [=](const auto& lanes) {
    detail::wgmma_rows<T, kMajorB, kAdds, kN>(
        lanes, [&](int i, int k) { return detail::wgmma_element<T, kMajorA>(a, first_row + i, k, site); }, b,
        site);
  });
}

template <class T, Major kMajorB, bool kAdds, int kN>
void wgmma(float (&d)[kN][4], const uint32_t (&a)[4], const WgmmaOperand& b, Site site = Site::current()) {
  if constexpr (!kAdds) detail::spoil(d);
  detail::wgmma_issue(d[0], a, site, [=](const auto& lanes) {
    const auto element = [&](int i, int k) {
      return detail::half_of<T>(lanes[static_cast<size_t>(i % 8 * 4 + k % 8 / 2)].a[k / 8 * 2 + i / 8],
                                k % 2);
    };
    detail::wgmma_rows<T, kMajorB, kAdds, kN>(lanes, element, b, site);
  });
}

}  // namespace glm::cuda
