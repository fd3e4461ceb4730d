// Parses PTX text into kernels.
#include "program.h"

#include <algorithm>
#include <stdexcept>

#include "reader.h"

namespace virtual_gpu {
namespace {

[[nodiscard]] std::string without_comments(const std::string& text) {
  std::string kept;
  for (size_t i = 0; i < text.size();) {
    if (text.compare(i, 2, "//") == 0) {
      i = std::min(text.find('\n', i), text.size());
    } else if (text.compare(i, 2, "/*") == 0) {
      i = std::min(text.find("*/", i), text.size() - 2) + 2;
    } else {
      kept += text[i++];
    }
  }
  return kept;
}

[[nodiscard]] size_t closing(const std::string& text, size_t open) {
  const char opens = text[open], closes = opens == '{' ? '}' : ')';
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    depth += text[i] == opens ? 1 : text[i] == closes ? -1 : 0;
    if (depth == 0) {
      return i;
    }
  }
  throw std::runtime_error("PTX that ends in the middle");
}

// The module without debug lines and without the sections after the code.
[[nodiscard]] std::string code_of(const std::string& module) {
  std::string kept;
  for (size_t begin = 0; begin < module.size();) {
    const size_t end = std::min(module.find('\n', begin), module.size());
    const std::string line = trimmed(module.substr(begin, end - begin));
    if (starts_with(line, ".section") || starts_with(line, "Fatbin")) {
      break;
    }
    if (!starts_with(line, ".loc") && !starts_with(line, ".file") && !starts_with(line, ".target") &&
        !starts_with(line, ".address_size") && !starts_with(line, ".version")) {
      kept += line + "\n";
    }
    begin = end + 1;
  }
  return kept;
}

// Marks the instructions that touch registers of a wgmma, which they must not do while it is in flight.
void find_registers_of_warpgroups(Kernel& kernel) {
  std::set<int> shared;
  for (const Instruction& i : kernel.instructions) {
    kernel.has_warpgroups |= i.warpgroup != WarpgroupOperation::none;
    if (i.warpgroup == WarpgroupOperation::multiply) {
      shared.insert(i.accumulators.begin(), i.accumulators.end());
      shared.insert(i.source, i.source + i.pack);
    }
  }
  for (Instruction& i : kernel.instructions) {
    if (i.warpgroup == WarpgroupOperation::none) {
      const auto touches = [&](int slot) { return shared.contains(slot); };
      i.touches_warpgroup = std::any_of(i.target, i.target + i.targets, touches) ||
                            std::any_of(i.source, i.source + i.sources, touches) || touches(i.predicate) ||
                            touches(i.address) || touches(i.second_address);
    }
  }
}

void parse_module(const std::string& code, std::map<std::string, Kernel>& kernels) {
  std::set<std::string> dynamic_shared;
  std::vector<Variable> static_shared;
  for (size_t at = 0; at < code.size();) {
    const size_t next = code.find_first_not_of(" \t\n\r", at);
    if (next == std::string::npos) {
      return;
    }
    const size_t entry = code.find(".entry", next), semicolon = code.find(';', next);
    if (semicolon < entry) {
      const std::string declaration = trimmed(code.substr(next, semicolon - next));
      if (declaration.find(".shared") == std::string::npos) {
        if (declaration.find("_$_str") != std::string::npos) {  // names emitted by the compiler that nothing reads
          at = semicolon + 1;
          continue;
        }
        throw std::runtime_error("PTX that the virtual GPU does not know: " + declaration.substr(0, 200));
      }
      const Variable variable = variable_of(declaration);
      if (variable.bytes == 0) {
        dynamic_shared.insert(variable.name);
      } else {
        static_shared.push_back(variable);
      }
      at = semicolon + 1;
      continue;
    }
    if (entry == std::string::npos) {
      return;
    }
    const size_t brace = code.find('{', entry), parenthesis = code.find('(', entry);
    const bool has_parameters = parenthesis < brace;
    Kernel kernel;
    kernel.name = trimmed(code.substr(entry + 6, std::min(brace, parenthesis) - entry - 6));
    kernel.name = kernel.name.substr(0, kernel.name.find_first_of(" \t\n."));
    Reader reader(kernel, dynamic_shared);
    for (const Variable& variable : static_shared) {
      reader.declare_shared(variable);
    }
    if (has_parameters) {
      reader.parameters(code.substr(parenthesis + 1, closing(code, parenthesis) - parenthesis - 1));
    }
    const size_t end = closing(code, brace);
    try {
      reader.body(code.substr(brace + 1, end - brace - 1));
    } catch (const std::exception& error) {
      throw std::runtime_error(kernel.name + ": " + error.what());
    }
    find_registers_of_warpgroups(kernel);
    kernels.emplace(kernel.name, std::move(kernel));
    at = end + 1;
  }
}

}  // namespace

std::map<std::string, Kernel> parse(const std::string& text) {
  std::map<std::string, Kernel> kernels;
  const std::string plain = without_comments(text);
  for (size_t at = plain.find(".version"); at != std::string::npos;) {
    const size_t next = plain.find(".version", at + 1);
    parse_module(code_of(plain.substr(at, next == std::string::npos ? next : next - at)), kernels);
    at = next;
  }
  return kernels;
}

}  // namespace virtual_gpu
