/* Force-included into every mlx-c source, and into its headers when bindings are made of them.
 *
 * mlx-c is written for Apple's toolchain. Two things are missing with GCC 12 on x86-64:
 *
 * 1. mlx/c/half.h declares the 16-bit float accessors on Arm alone, while mlx-rs calls them
 *    everywhere. The accessors only move bits, so a 16-bit integer serves as the type; bindgen
 *    must see __fp16, which it renders as the newtype that mlx-rs expects.
 * 2. mlx/c/private/io.h uses std::format, which libstdc++ has from GCC 13 on. Every format string
 *    there is text with plain "{}" fields.
 */
#pragma once

#include <stdint.h>

#if !defined(__aarch64__)
#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16
#if defined(__clang__)
typedef __fp16 float16_t;
#else
typedef uint16_t float16_t;
#endif
typedef uint16_t bfloat16_t;
#endif

#if defined(__cplusplus)
#if __has_include(<format>)
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>

namespace std {

template <typename... Args>
string format(string_view text, const Args&... args) {
  ostringstream out;
  auto put_field = [&](const auto& value) {
    const size_t field = text.find("{}");
    out << text.substr(0, field);
    if (field == string_view::npos) {
      text = {};
      return;
    }
    out << value;
    text.remove_prefix(field + 2);
  };
  (put_field(args), ...);
  out << text;
  return out.str();
}

} // namespace std
#endif
#endif
