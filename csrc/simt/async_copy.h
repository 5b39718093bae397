// cp.async of one thread: copies are put into groups, and a wait makes all but the last few groups arrive.
//
// The hardware may move the bytes at any time between the copy and the wait. Two models stand at the ends of
// what is allowed: eager moves them at once, deferred when they are waited for. A missing barrier before a
// buffer is filled again shows only in the first, a wait for too few groups only in the second.
#pragma once

#include <cstdint>
#include <source_location>
#include <vector>

namespace glm::simt {

class AsyncCopies {
 public:
  // destination is shared; a null source writes zeros.
  void copy(void* destination, const void* source, int bytes, std::source_location site);
  void commit();
  void wait_all_but(int groups, std::source_location site);
  void check_all_waited() const;  // at the end of the kernel
  void clear();

 private:
  struct Copy {
    void* destination;
    const void* source;
    int bytes;
    int group;
    std::source_location site;
  };
  static void move(const Copy& copy);

  std::vector<Copy> pending_;  // in the order of issue
  int group_ = 0;              // the one being filled
};

}  // namespace glm::simt
