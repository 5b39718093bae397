// What the memory accesses of a kernel cost, counted as the hardware serves them:
//   shared  wavefronts of a warp's access; one conflict-free wavefront serves each of 32 banks of 4 bytes
//   once.
//           16-byte accesses go by quarter warps, 8-byte ones by half warps, an ldmatrix by its 8 rows.
//   global  sectors of 32 bytes that a warp's access touches.
// "ideal" is the least that the same bytes could cost. Counted per source line, only with
// Options::count_accesses.
#pragma once

#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

namespace glm::simt {

enum class Space : int { shared, global };

struct AccessCount {
  Space space;
  std::string file;
  int line;
  int64_t requests, cost, ideal;
};

class Counters {
 public:
  // One lane's access. The lanes' n-th passes over one line of source are one request of the warp.
  void access(Space space, const void* address, int bytes, std::source_location site);
  // The rows of one 8x8 matrix of an ldmatrix.
  void matrix_access(const void* const (&rows)[8], std::source_location site);

  void finish_block();

  std::vector<AccessCount> totals() const;
  void clear();

 private:
  struct Impl;
  Impl& impl() const;
};

Counters& counters();

}  // namespace glm::simt
