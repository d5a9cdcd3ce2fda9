// C++ exceptions must not cross into Rust: every entry point runs inside guard().
#pragma once

#include <exception>
#include <string>
#include <utility>

template <class F>
const char* guard(F&& body) {
  static thread_local std::string reason;
  try {
    std::forward<F>(body)();
    return nullptr;
  } catch (const std::exception& e) {
    reason = e.what();
  } catch (...) {
    reason = "unknown C++ exception";
  }
  return reason.c_str();
}
