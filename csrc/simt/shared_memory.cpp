#include "simt/shared_memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "simt/machine.h"

namespace glm::simt {

SharedMemory::~SharedMemory() { std::free(data_); }

void SharedMemory::start_launch(int64_t bytes) {
  if (bytes > capacity_) {
    std::free(data_);
    // As aligned as the hardware's, and no more: a swizzle that counts on 2048 bytes must not work by chance.
    data_ = static_cast<unsigned char*>(
        std::aligned_alloc(1024, static_cast<size_t>((bytes + 1023) / 1024 * 1024)));
    if (data_ == nullptr) throw std::bad_alloc();
    capacity_ = bytes;
  }
  bytes_ = bytes;
  cells_.assign(static_cast<size_t>((bytes + kGranule - 1) / kGranule), Cell{});
}

// All bits set is a NaN in every floating type that kernels use.
void SharedMemory::poison() {
  if (bytes_ > 0) std::memset(data_, 0xff, static_cast<size_t>(bytes_));
}

SharedMemory::Access SharedMemory::now(int thread_id, std::source_location site) {
  Machine& m = machine();
  return {m.block_epoch(), m.thread().warp_epoch, thread_id, thread_id / kWarpSize, site};
}

bool SharedMemory::ordered(const Access& before, const Access& after) {
  if (before.thread == kNobody || before.thread == after.thread) return true;
  if (before.block_epoch < after.block_epoch) return true;
  return before.warp == after.warp && before.warp_epoch < after.warp_epoch;
}

template <class Visit>
void SharedMemory::visit(const void* address, int64_t bytes, std::source_location site, Visit&& visit_cell) {
  const int64_t begin = static_cast<const unsigned char*>(address) - data_;
  if (begin < 0 || begin + bytes > bytes_)
    fault(site, "shared memory: bytes [", begin, ", ", begin + bytes, ") are outside of the ", bytes_,
          " of the block");
  if (begin % bytes != 0)
    fault(site, "shared memory: byte ", begin, " is not aligned to an access of ", bytes);
  if (!options().check_races) return;
  for (int64_t cell = begin / kGranule; cell < (begin + bytes + kGranule - 1) / kGranule; ++cell)
    visit_cell(cells_[static_cast<size_t>(cell)]);
}

void SharedMemory::read_as(int thread_id, const void* address, int64_t bytes, std::source_location site) {
  const Access access = now(thread_id, site);
  visit(address, bytes, site, [&](Cell& cell) {
    if (cell.in_flight)
      fault(site, "race: reads what the cp.async of ", describe(cell.written.site),
            " may not have written yet");
    if (!ordered(cell.written, access))
      fault(site, "race: thread ", thread_id, " reads what thread ", cell.written.thread, " wrote at ",
            describe(cell.written.site), " without a barrier between");
    if (ordered(cell.read, access)) {
      cell.read = access;
    } else {  // several readers side by side: a later write must come after all of them
      cell.read.thread = kSeveral;
      if (cell.read.warp != access.warp) cell.read.warp = kSeveral;
      if (cell.read.warp_epoch < access.warp_epoch) cell.read.warp_epoch = access.warp_epoch;
    }
  });
}

void SharedMemory::read(const void* address, int64_t bytes, std::source_location site) {
  read_as(this_thread().id, address, bytes, site);
}

void SharedMemory::store(Cell& cell, const Access& access, const char* what) {
  if (cell.in_flight)
    fault(access.site, "race: ", what, " what the cp.async of ", describe(cell.written.site),
          " may still write");
  if (!ordered(cell.written, access))
    fault(access.site, "race: thread ", access.thread, " ", what, " what thread ", cell.written.thread,
          " wrote at ", describe(cell.written.site), " without a barrier between");
  if (!ordered(cell.read, access))
    fault(access.site, "race: thread ", access.thread, " ", what, " what others read at ",
          describe(cell.read.site), " without a barrier between");
  cell.written = access;
}

void SharedMemory::write(const void* address, int64_t bytes, std::source_location site) {
  const Access access = now(this_thread().id, site);
  visit(address, bytes, site, [&](Cell& cell) {
    store(cell, access, "writes over");
    write_ordinarily(cell);
  });
}

void SharedMemory::begin_copy(const void* address, int64_t bytes, std::source_location site) {
  const Access access = now(this_thread().id, site);
  visit(address, bytes, site, [&](Cell& cell) {
    store(cell, access, "copies over");
    cell.in_flight = true;
  });
}

void SharedMemory::finish_copy(const void* address, int64_t bytes, std::source_location site) {
  const Access access = now(this_thread().id, site);
  visit(address, bytes, site, [&](Cell& cell) {
    cell.written = access;
    cell.in_flight = false;
    write_ordinarily(cell);
  });
}

void SharedMemory::write_ordinarily(Cell& cell) {
  if (!options().hopper) return;
  cell.published = false;
  this_thread().unpublished.push_back(&cell - cells_.data());
}

void SharedMemory::read_published(const void* address, int64_t bytes, std::source_location site) {
  read(address, bytes, site);
  visit(address, bytes, site, [&](Cell& cell) {
    if (!cell.published)
      fault(site, "wgmma reads what thread ", cell.written.thread, " wrote at ", describe(cell.written.site),
            " and has not published");
  });
}

void SharedMemory::publish() {
  for (const int64_t cell : this_thread().unpublished) cells_[static_cast<size_t>(cell)].published = true;
  this_thread().unpublished.clear();
}

}  // namespace glm::simt
