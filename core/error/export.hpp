#pragma once
/// Marks what a shared libmeshstage exports; everything else has hidden visibility.
#define MESHSTAGE_API __attribute__((visibility("default")))
