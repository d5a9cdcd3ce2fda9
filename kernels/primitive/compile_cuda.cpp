// nvrtc, found at run time: libmlx.so's CUDA build brings it along, its CPU build has no use for it.

#include "compile_cuda.h"

#include <dlfcn.h>
#include <unistd.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

#include "mlx/backend/gpu/device_info.h"

namespace mx = mlx::core;

namespace metal_rpc {
namespace {

// The part of nvrtc.h that is used; stable since CUDA 11.
using Program = void*;
using Status = int;
constexpr const char* kLibrary = "libnvrtc.so.13";

template <typename F>
F* symbol(const char* name) {
  static void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  void* found = library ? dlsym(library, name) : nullptr;
  if (found == nullptr) {
    throw std::runtime_error(std::string(kLibrary) + " has no " + name + ": " + dlerror());
  }
  return reinterpret_cast<F*>(found);
}

void check(Status status, const char* what) {
  if (status != 0) {
    auto text = symbol<const char*(Status)>("nvrtcGetErrorString");
    throw std::runtime_error(std::string(what) + " failed: " + text(status));
  }
}

std::string architecture() {
  auto& info = mx::gpu::device_info();
  auto number = [&](const char* key) { return std::to_string(std::get<size_t>(info.at(key))); };
  return "--gpu-architecture=sm_" + number("compute_capability_major") +
      number("compute_capability_minor");
}

std::string compile(const Launch& launch) {
  const std::string source = launch.source();
  Program program = nullptr;
  check(
      symbol<Status(Program*, const char*, const char*, int, const char* const*, const char* const*)>(
          "nvrtcCreateProgram")(
          &program, source.c_str(), launch.name.c_str(), 0, nullptr, nullptr),
      "nvrtcCreateProgram");
  const std::string target = architecture();
  const char* options[] = {target.c_str(), "--std=c++17"};
  const Status status =
      symbol<Status(Program, int, const char* const*)>("nvrtcCompileProgram")(program, 2, options);
  if (status != 0) {
    size_t size = 0;
    symbol<Status(Program, size_t*)>("nvrtcGetProgramLogSize")(program, &size);
    std::string log(size, '\0');
    symbol<Status(Program, char*)>("nvrtcGetProgramLog")(program, log.data());
    throw std::runtime_error("kernel " + launch.name + " does not compile:\n" + log);
  }
  size_t size = 0;
  check(symbol<Status(Program, size_t*)>("nvrtcGetCUBINSize")(program, &size), "nvrtcGetCUBINSize");
  std::string code(size, '\0');
  check(symbol<Status(Program, char*)>("nvrtcGetCUBIN")(program, code.data()), "nvrtcGetCUBIN");
  symbol<Status(Program*)>("nvrtcDestroyProgram")(&program);
  return code;
}

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

void write_file(const std::filesystem::path& path, const std::string& text) {
  // Another process may want the same file: each writes its own, and the last name stays.
  auto staging = path;
  staging += "." + std::to_string(getpid());
  std::ofstream(staging, std::ios::binary) << text;
  std::filesystem::rename(staging, path);
}

// MLX hashes the whole source at every launch, which takes longer than the launch. So the source is
// a short word, and the code is in the file that MLX names after it.
std::string publish(const Launch& launch) {
  if (!has_folder) {
    throw std::runtime_error(std::string("cannot set ") + kFolderVariable);
  }
  const auto hash = std::hash<std::string>();
  const std::string word = launch.name + " " + architecture() + " " +
      std::to_string(hash(launch.source()));
  const std::filesystem::path folder = std::getenv(kFolderVariable);
  if (std::filesystem::create_directories(folder)) {
    std::filesystem::permissions(folder, std::filesystem::perms::owner_all);
  }
  std::ostringstream name;
  name << launch.name << "_" << std::hex << hash(word);
  if (!std::filesystem::exists(folder / (name.str() + ".ptx"))) {
    write_file(folder / (name.str() + ".txt"), launch.name + "\t" + launch.name + "\n");
    write_file(folder / (name.str() + ".ptx"), compile(launch));
  }
  return word;
}

// Older GPUs have no such instruction: cuda.h.
bool has_waits(const Launch& launch) {
  static const bool can_wait =
      std::get<size_t>(mx::gpu::device_info().at("compute_capability_major")) >= 9;
  auto waits = [](const char* piece) { return std::strstr(piece, "AWAIT_EARLIER") != nullptr; };
  // The first one is the prelude, which defines the word.
  return can_wait && std::any_of(launch.pieces.begin() + 1, launch.pieces.end(), waits);
}

struct Compiled {
  std::string word;
  bool has_waits;
};

// By entry point.
struct Programs {
  std::mutex mutex;
  std::unordered_map<std::string, Compiled> compiled;
};

Programs& programs() {
  static auto& programs = *new Programs;
  return programs;
}

} // namespace

const std::string& machine_code(const Launch& launch) {
  auto& [mutex, compiled] = programs();
  std::lock_guard lock(mutex);
  auto found = compiled.find(launch.name);
  if (found == compiled.end()) {
    found = compiled.emplace(launch.name, Compiled{publish(launch), has_waits(launch)}).first;
  }
  return found->second.word;
}

bool awaits_earlier(const std::string& name) {
  auto& [mutex, compiled] = programs();
  std::lock_guard lock(mutex);
  auto found = compiled.find(name);
  return found != compiled.end() && found->second.has_waits;
}

} // namespace metal_rpc
