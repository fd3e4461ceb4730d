// Pieces of PTX text.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace virtual_gpu {

[[nodiscard]] inline std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\n\r");
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\n\r") - first + 1);
}

[[nodiscard]] inline bool starts_with(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

// Apart at `separator`, but for those in braces and brackets.
[[nodiscard]] inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '{' || c == '[' ? 1 : c == '}' || c == ']' ? -1 : 0;
    if (c == separator && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  for (std::string& part : parts) {
    part = trimmed(part);
  }
  return parts;
}

[[nodiscard]] inline int64_t bytes_of(const std::string& type) {  // "f32", "b8", "pred"
  return type == "pred" ? 1 : std::stoll(type.substr(type.find_first_of("0123456789"))) / 8;
}

struct Variable {
  int64_t align = 1, bytes = 0;
  std::string name;
};

// ".param .align 8 .b8 name[96]", ".param .u64 .ptr .global .align 16 name", ".shared .align 4 .b8 name[128]"
[[nodiscard]] inline Variable variable_of(std::string declaration) {
  Variable variable;
  int64_t element = 1, stated = 0;
  std::replace(declaration.begin(), declaration.end(), '\n', ' ');
  std::replace(declaration.begin(), declaration.end(), '\t', ' ');
  std::vector<std::string> words;
  for (const std::string& word : split(declaration, ' ')) {
    if (!word.empty()) {
      words.push_back(word);
    }
  }
  bool of_pointer = false;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == ".align") {
      (of_pointer ? stated : variable.align) = std::stoll(words[++i]);
    } else if (words[i] == ".ptr") {
      of_pointer = true;
    } else if (words[i][0] == '.' && words[i].find_first_of("0123456789") != std::string::npos) {
      element = bytes_of(words[i].substr(1));
      variable.align = std::max(variable.align, element);
    } else if (words[i][0] != '.') {
      const size_t bracket = words[i].find('[');
      variable.name = words[i].substr(0, bracket);
      const std::string count = bracket == std::string::npos ? "1" : words[i].substr(bracket + 1);
      variable.bytes = count[0] == ']' ? 0 : element * std::stoll(count);
    }
  }
  return variable;
}

}  // namespace virtual_gpu
