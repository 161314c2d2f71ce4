// What the sketch of examples/arduino_digits calls of an Arduino's library: on a PC, bytes of the standard streams.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>

enum { OUTPUT = 1, HIGH = 1, LOW = 0, LED_BUILTIN = 13 };
inline void pinMode(int, int) {}
inline void digitalWrite(int, int) {}
inline void delay(int) {}

struct Line {
  void begin(long) {}
  size_t readBytes(char *bytes, size_t count) {
    size_t read = std::fread(bytes, 1, count, stdin);
    if (read == 0) std::exit(0);
    return read;
  }
  void println(const char *text) { std::puts(text); }
};
static Line Serial;
