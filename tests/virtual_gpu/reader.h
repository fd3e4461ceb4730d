// The body of a kernel, from text to instructions.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "program.h"
#include "text.h"

namespace virtual_gpu {

// One kernel's names, while its body is read.
class Reader {
 public:
  Reader(Kernel& kernel, const std::set<std::string>& dynamic_shared)
      : kernel_(kernel), dynamic_shared_(dynamic_shared) {}

  void parameters(const std::string& list) {
    for (const std::string& declaration : split(list, ',')) {
      if (declaration.empty()) {
        continue;
      }
      const Variable variable = variable_of(declaration);
      const int64_t offset = (kernel_.parameter_bytes + variable.align - 1) / variable.align * variable.align;
      kernel_.parameters.push_back({offset, variable.bytes});
      kernel_.parameter_bytes = offset + variable.bytes;
      parameter_offsets_[variable.name] = offset;
    }
  }

  void body(const std::string& text) {
    for (std::string statement : statements(text)) {
      for (;;) {
        const auto colon = statement.find(':');
        const auto end_of_name =
            statement.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$%");
        if (colon == std::string::npos || colon != end_of_name || colon == 0) {
          break;
        }
        labels_[statement.substr(0, colon)] = static_cast<int>(kernel_.instructions.size());
        statement = trimmed(statement.substr(colon + 1));
      }
      if (statement.empty() || starts_with(statement, ".pragma")) {
        continue;
      }
      if (starts_with(statement, ".reg")) {
        declare_registers(statement);
      } else if (starts_with(statement, ".shared")) {
        declare_shared(variable_of(statement));
      } else if (statement[0] == '.') {
        throw std::runtime_error("PTX that the virtual GPU does not know: " + statement);
      } else {
        add_instruction(statement);
      }
    }
    number_slots();
    for (auto& [index, label] : jumps_) {
      if (!labels_.contains(label)) {
        throw std::runtime_error("no label " + label);
      }
      kernel_.instructions[index].jump = labels_[label];
    }
  }

  void declare_shared(const Variable& variable) {
    const int64_t offset = (kernel_.static_shared_bytes + variable.align - 1) / variable.align * variable.align;
    shared_[variable.name] = offset;
    kernel_.static_shared_bytes = offset + variable.bytes;
  }

 private:
  // Those of scopes in braces are taken for the kernel's own: what is declared in one is used there only.
  [[nodiscard]] static std::vector<std::string> statements(const std::string& text) {
    std::vector<std::string> found;
    std::string current;
    int depth = 0;
    for (const char c : text) {
      const bool opens_scope = c == '{' && (trimmed(current).empty() || trimmed(current).back() == ':');
      if (opens_scope || (c == '}' && depth == 0)) {
        current += ' ';
        continue;
      }
      depth += c == '{' ? 1 : c == '}' ? -1 : 0;
      if (c == ';') {
        found.push_back(trimmed(current));
        current.clear();
      } else {
        current += c;
      }
    }
    return found;
  }

  void declare_registers(const std::string& statement) {
    const std::string names = statement.substr(statement.find_first_of(" \t", statement.find('.', 1)) + 1);
    for (const std::string& name : split(names, ',')) {
      const auto bracket = name.find('<');
      if (bracket == std::string::npos) {
        registers_.try_emplace(name, static_cast<int>(registers_.size()));
        continue;
      }
      const int count = std::stoi(name.substr(bracket + 1));
      for (int i = 0; i < count; ++i) {
        registers_.try_emplace(name.substr(0, bracket) + std::to_string(i), static_cast<int>(registers_.size()));
      }
    }
  }

  // A constant's slot, as minus one minus its place among the constants, until the registers are counted.
  [[nodiscard]] int16_t constant(uint64_t value) {
    const auto [place, fresh] = constants_.try_emplace(value, static_cast<int>(kernel_.constants.size()));
    if (fresh) {
      kernel_.constants.push_back(value);
    }
    return static_cast<int16_t>(-2 - place->second);
  }

  [[nodiscard]] int16_t slot(const std::string& operand) {
    if (const auto found = registers_.find(operand); found != registers_.end()) {
      return static_cast<int16_t>(found->second);
    }
    const auto special = std::find(SPECIAL_REGISTERS.begin(), SPECIAL_REGISTERS.end(), operand);
    if (special != SPECIAL_REGISTERS.end()) {
      return static_cast<int16_t>(SPECIAL_BASE + (special - SPECIAL_REGISTERS.begin()));
    }
    if (const auto found = shared_.find(operand); found != shared_.end()) {
      return constant(static_cast<uint64_t>(found->second));
    }
    if (const auto found = parameter_offsets_.find(operand); found != parameter_offsets_.end()) {
      return constant(static_cast<uint64_t>(found->second));
    }
    if (dynamic_shared_.contains(operand)) {
      return DYNAMIC_SHARED;
    }
    if (operand == "_") {
      return constant(0);
    }
    if (operand == "WARP_SZ") {
      return constant(32);
    }
    if (starts_with(operand, "0f") || starts_with(operand, "0d")) {
      return constant(std::stoull(operand.substr(2), nullptr, 16));
    }
    if (!operand.empty() && (std::isdigit(operand[0]) || operand[0] == '-')) {
      const std::string digits = operand.back() == 'U' ? operand.substr(0, operand.size() - 1) : operand;
      return constant(digits[0] == '-' ? static_cast<uint64_t>(std::stoll(digits, nullptr, 0))
                                       : std::stoull(digits, nullptr, 0));
    }
    throw std::runtime_error("an operand that the virtual GPU does not know: " + operand);
  }

  void add_address(const std::string& bracketed, Instruction& instruction) {
    const std::string inner = trimmed(bracketed.substr(1, bracketed.size() - 2));
    const auto sign = inner.find_first_of("+-", 1);
    const std::string base = trimmed(inner.substr(0, sign));
    const bool second = instruction.address != -1;
    if (sign != std::string::npos) {
      std::string offset = inner.substr(sign);
      offset.erase(std::remove(offset.begin(), offset.end(), ' '), offset.end());
      (second ? instruction.second_offset : instruction.offset) =
          std::stoll(starts_with(offset, "+-") ? offset.substr(1) : offset, nullptr, 0);
    }
    (second ? instruction.second_address : instruction.address) = slot(base);
  }

  void add_operand(const std::string& operand, bool is_target, Instruction& instruction) {
    std::vector<std::string> names{operand};
    if (operand[0] == '[') {
      add_address(operand, instruction);
      return;
    }
    if (operand[0] == '{') {
      names = split(operand.substr(1, operand.size() - 2), ',');
      (is_target ? instruction.wide : instruction.pack) = static_cast<uint8_t>(names.size());
    } else if (is_target && operand.find('|') != std::string::npos) {
      names = split(operand, '|');
    }
    for (const std::string& name : names) {
      uint8_t& count = is_target ? instruction.targets : instruction.sources;
      if (count == Instruction::MOST_VALUES) {
        throw std::runtime_error("more operands than the virtual GPU has room for: " + instruction.text);
      }
      if (is_target && name == "_") {
        if (!registers_.contains("_")) {
          registers_.emplace("_", static_cast<int>(registers_.size()));
        }
      }
      const bool negated = name[0] == '!';
      if (negated) {
        throw std::runtime_error("a negated operand: " + instruction.text);
      }
      (is_target ? instruction.target : instruction.source)[count++] = slot(name);
    }
  }

  void add_instruction(const std::string& statement) {
    Instruction instruction;
    instruction.text = statement;
    std::replace(instruction.text.begin(), instruction.text.end(), '\n', ' ');
    std::string rest = statement;
    if (rest[0] == '@') {
      const auto space = rest.find_first_of(" \t");
      instruction.negated = rest[1] == '!';
      instruction.predicate = slot(rest.substr(instruction.negated ? 2 : 1, space - (instruction.negated ? 2 : 1)));
      rest = trimmed(rest.substr(space));
    }
    const auto space = rest.find_first_of(" \t\n");
    const std::string name = rest.substr(0, space);
    const std::vector<std::string> parts = split(name, '.');
    const std::vector<std::string> operands =
        space == std::string::npos ? std::vector<std::string>() : split(trimmed(rest.substr(space)), ',');
    instruction.handler = handler_of(parts, instruction);
    if (parts[0] == "bra") {
      jumps_.emplace_back(kernel_.instructions.size(), operands[0]);
    } else {
      static const std::vector<std::string> WITHOUT_TARGET = {"st",   "bar",   "barrier", "red", "prefetch", "ret",
                                                              "exit", "fence", "membar",  "cp",  "stmatrix", "wgmma"};
      const bool has_target = std::find(WITHOUT_TARGET.begin(), WITHOUT_TARGET.end(), parts[0]) == WITHOUT_TARGET.end();
      const bool accumulates = instruction.warpgroup == WarpgroupOperation::multiply;
      if (accumulates) {
        for (const std::string& name : split(operands.at(0).substr(1, operands[0].size() - 2), ',')) {
          instruction.accumulators.push_back(slot(name));
        }
      }
      for (size_t i = accumulates ? 1 : 0; i < operands.size(); ++i) {
        add_operand(operands[i], i == 0 && has_target, instruction);
      }
    }
    kernel_.instructions.push_back(instruction);
  }

  // Registers first, then constants, then special registers, then where dynamic shared memory begins.
  void number_slots() {
    kernel_.registers = static_cast<int>(registers_.size());
    kernel_.static_shared_bytes = (kernel_.static_shared_bytes + 15) / 16 * 16;
    const auto dynamic = static_cast<int16_t>(constant(static_cast<uint64_t>(kernel_.static_shared_bytes)));
    kernel_.special = kernel_.registers + static_cast<int>(kernel_.constants.size());
    kernel_.slots = kernel_.special + static_cast<int>(SPECIAL_REGISTERS.size());
    if (kernel_.slots > SPECIAL_BASE) {
      throw std::runtime_error("more registers than the virtual GPU has room for in " + kernel_.name);
    }
    const auto numbered = [&](int16_t slot) -> int16_t {
      if (slot == DYNAMIC_SHARED) {
        slot = dynamic;
      }
      if (slot >= SPECIAL_BASE) {
        return static_cast<int16_t>(kernel_.special + slot - SPECIAL_BASE);
      }
      return slot <= -2 ? static_cast<int16_t>(kernel_.registers - 2 - slot) : slot;
    };
    for (Instruction& instruction : kernel_.instructions) {
      for (int i = 0; i < Instruction::MOST_VALUES; ++i) {
        instruction.target[i] = numbered(instruction.target[i]);
        instruction.source[i] = numbered(instruction.source[i]);
      }
      for (int16_t& accumulator : instruction.accumulators) {
        accumulator = numbered(accumulator);
      }
      instruction.address = numbered(instruction.address);
      instruction.second_address = numbered(instruction.second_address);
    }
  }

  static constexpr int16_t SPECIAL_BASE = 30000, DYNAMIC_SHARED = 32000;

  Kernel& kernel_;
  const std::set<std::string>& dynamic_shared_;
  std::map<std::string, int> registers_;
  std::map<std::string, int64_t> parameter_offsets_, shared_;
  std::map<uint64_t, int> constants_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
};

}  // namespace virtual_gpu
