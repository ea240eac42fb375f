#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace meshstage::tools::drill {

/// The first difference between two states that the trainer saved, bit for bit: losses first, in
/// the order of steps, then the rest. "loss of step 88: 2.41 against 2.43",
/// "model.hidden1.weight[3, 17]: 0.5 against 0.25". Nothing if every bit is equal.
/// Throws NotFound, CorruptData for what is no such file.
/// `cut`: the files of all ranks of the second job, whose moments are cut over them. One after the
/// other their parts must be the moments of `whole`. Empty: `recovered` has them whole, too.
std::optional<std::string> first_difference(const std::filesystem::path& whole,
                                            const std::filesystem::path& recovered,
                                            const std::vector<std::filesystem::path>& cut = {});

}  // namespace meshstage::tools::drill
