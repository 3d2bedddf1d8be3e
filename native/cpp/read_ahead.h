// Asking memory for what one thread reads, before it does. Knows nothing of what is read.
#pragma once

#include "common.h"

// Rows of memory, one after the other, of which only the first bytes are read.
class RowsAhead {
  public:
    RowsAhead() = default;
    RowsAhead(const void* from, Int rows, Int bytes, Int row_bytes)
        : at(static_cast<const char*>(from)), rows(rows), row_lines((bytes + LINE_BYTES - 1) / LINE_BYTES), row_bytes(row_bytes),
          left(row_lines) {}

    Int lines() const { return rows * row_lines; }

    // Asks for so many more lines.
    __attribute__((always_inline)) void ask(Int count) {
        while (count > 0 && rows) {
            const Int some = std::min(count, left);
            for (Int i = 0; i < some; ++i) fetch(at + (row_lines - left + i) * LINE_BYTES);
            count -= some, left -= some;
            if (!left) at += row_bytes, left = row_lines, --rows;
        }
    }

  private:
    const char* at = nullptr;
    Int rows = 0, row_lines = 0, row_bytes = 0, left = 0;
};

// Lines of memory in the order in which they are read: one of each row, then the next of each.
struct Lines {
    const BFloat16* from = nullptr;
    Int rows = 0, stride = 0, steps = 0;  // `stride`: from a row to the next, in numbers
};

// Asks for each line that readers [from, to) read a fixed distance before it is read, across the ends of all that they
// read: one may be long where the next is short. A reader says which `lines(group)` it reads, of its `line_groups()`.
template <class Reader>
class ReadAhead {
  public:
    ReadAhead(const Reader* from, const Reader* to) : reader(from), end(to) {
        find();
        read(DISTANCE);
    }

    // So many lines are about to be read.
    void read(Int count) {
        for (; count && reader != end; --count) {
            fetch(lines.from + row * lines.stride + step * LINE);
            if (++row < lines.rows) continue;
            row = 0;
            if (++step == lines.steps) ++group, find();
        }
    }

  private:
    static constexpr Int DISTANCE = 512;  // lines

    // The next lines there are, from `group` on.
    void find() {
        step = 0;
        for (; reader != end; ++reader, group = 0)
            for (; group < reader->line_groups(); ++group) {
                lines = reader->lines(group);
                if (lines.rows > 0 && lines.steps > 0) return;
            }
    }

    const Reader *reader, *end;
    Lines lines;
    Int group = 0, step = 0, row = 0;
};
