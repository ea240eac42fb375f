#pragma once
#include <filesystem>
#include <string>

/// Text files for people and for monitoring, on the real file system. Their mode is what the umask
/// makes of 0666, so that another user's collector may read them. A write past `ulimit -f` throws,
/// and raises no signal. All throw IoError.
namespace meshstage::detail {

/// Appends `text` and a line end in one write, at the file's end as it is then: other processes may
/// append, too. Makes the file if there is none. A line that somebody left unfinished is ended
/// first.
void append_line(const std::filesystem::path& file, const std::string& text);

/// Makes `file` a file of this text; a reader finds the old one or the new one. Not synced: after a
/// power loss it may be empty.
void replace_text(const std::filesystem::path& file, const std::string& text);

}  // namespace meshstage::detail
