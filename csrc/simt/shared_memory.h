// The shared memory of a block: filled with NaN before each block, bounds-checked, and watched for races.
//
// Two accesses race when different threads make them, one writes, and no barrier lies between: no
// __syncthreads for threads of different warps, no __syncwarp either for lanes of one warp (a shuffle orders
// nothing in memory). Each two bytes remember who wrote and read them last and at which epoch. A cp.async in
// flight owns its bytes until its thread has waited for it.
#pragma once

#include <cstdint>
#include <source_location>
#include <vector>

namespace glm::simt {

class SharedMemory {
 public:
  SharedMemory() = default;
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void start_launch(int64_t bytes);
  void poison();
  unsigned char* data() { return data_; }

  void read(const void* address, int64_t bytes, std::source_location site);
  void write(const void* address, int64_t bytes, std::source_location site);
  void begin_copy(const void* address, int64_t bytes, std::source_location site);
  void finish_copy(const void* address, int64_t bytes, std::source_location site);

  // A lane reads for another: ldmatrix hands each lane words of rows that other lanes point to.
  void read_as(int thread_id, const void* address, int64_t bytes, std::source_location site);

  // wgmma reads past the ordinary path of stores and cp.async: what the thread that wrote has not published
  // since may not have arrived. Kept track of with Options::hopper.
  void read_published(const void* address, int64_t bytes, std::source_location site);
  void publish();

 private:
  static constexpr int kGranule = 2;  // bytes: the smallest element that kernels share
  static constexpr int kNobody = -1, kSeveral = -2;

  struct Access {
    uint32_t block_epoch = 0, warp_epoch = 0;
    int thread = kNobody;  // or kSeveral, for readers
    int warp = kNobody;
    std::source_location site;
  };
  struct Cell {
    Access written, read;
    bool in_flight = false;
    bool published = true;
  };

  template <class Visit>
  void visit(const void* address, int64_t bytes, std::source_location site, Visit&& visit_cell);
  static Access now(int thread_id, std::source_location site);
  static bool ordered(const Access& before, const Access& after);
  static void store(Cell& cell, const Access& access, const char* what);
  void write_ordinarily(Cell& cell);

  unsigned char* data_ = nullptr;
  int64_t bytes_ = 0, capacity_ = 0;
  std::vector<Cell> cells_;
};

}  // namespace glm::simt
