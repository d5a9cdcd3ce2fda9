// The folder of what was found out for the GPU once, and need not be again: compiled kernels, and
// which of cuBLAS's to take.
#pragma once

#include <filesystem>
#include <string>

namespace metal_rpc {

// Made if it is absent, for this user alone.
std::filesystem::path kernel_folder();

// Writes a whole file or none.
void write_file(const std::filesystem::path& path, const std::string& text);

} // namespace metal_rpc
