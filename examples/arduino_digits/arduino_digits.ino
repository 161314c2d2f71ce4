// Reads an image of a handwritten digit from the serial line, 8 x 8 pixels of one byte each, and answers with its class.
// The light then blinks as often as the class says. The network: README.md.

#include "src/digits/digits.h"

static uint32_t arena[DIGITS_ARENA_SIZE / 4];
static int32_t scores[DIGITS_SCORES];
static uint8_t pixels[DIGITS_INPUT_SIZE];

void setup() {
  pinMode(LED_BUILTIN, OUTPUT);
  Serial.begin(115200);
}

static void blink(size_t times) {
  for (size_t i = 0; i < times; i++) {
    digitalWrite(LED_BUILTIN, HIGH);
    delay(150);
    digitalWrite(LED_BUILTIN, LOW);
    delay(150);
  }
}

void loop() {
  if (Serial.readBytes((char *)pixels, sizeof pixels) != sizeof pixels) {
    return;  // nothing came within a second
  }
  if (digits_run(pixels, scores, arena, sizeof arena) != DIGITS_OK) {
    Serial.println("the arena is too small");
    return;
  }
  size_t best = digits_best(scores, DIGITS_SCORES);
  Serial.println(digits_labels[best]);
  blink(best);
}
