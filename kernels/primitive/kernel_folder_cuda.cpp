#include "kernel_folder_cuda.h"

#include <unistd.h>
#include <cstdlib>
#include <fstream>
#include <stdexcept>

namespace metal_rpc {
namespace {

// Where MLX looks for compiled kernels. Its own choice is a folder that every user can write.
constexpr const char* kFolderVariable = "MLX_PTX_CACHE_DIR";

std::filesystem::path default_folder() {
  if (auto cache = std::getenv("XDG_CACHE_HOME"); cache && *cache) {
    return std::filesystem::path(cache) / "metal-rpc" / "kernels";
  }
  auto home = std::getenv("HOME");
  return std::filesystem::path(home ? home : "") / ".cache" / "metal-rpc" / "kernels";
}

// MLX reads the variable once, and not before main.
const bool has_folder = setenv(kFolderVariable, default_folder().c_str(), /* overwrite = */ 0) == 0;

} // namespace

std::filesystem::path kernel_folder() {
  if (!has_folder) {
    throw std::runtime_error(std::string("cannot set ") + kFolderVariable);
  }
  const std::filesystem::path folder = std::getenv(kFolderVariable);
  if (std::filesystem::create_directories(folder)) {
    std::filesystem::permissions(folder, std::filesystem::perms::owner_all);
  }
  return folder;
}

void write_file(const std::filesystem::path& path, const std::string& text) {
  // Another process may want the same file: each writes its own, and the last name stays.
  auto staging = path;
  staging += "." + std::to_string(getpid());
  std::ofstream(staging, std::ios::binary) << text;
  std::filesystem::rename(staging, path);
}

} // namespace metal_rpc
