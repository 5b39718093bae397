// The GPUs of this machine.
#pragma once

#include <string>
#include <vector>

namespace glm::cuda {

struct Device {
  std::string name;
  int major, minor;  // compute capability
};

// Empty where there is no GPU, or no driver that this build can talk to.
std::vector<Device> devices();

}  // namespace glm::cuda
