/* A small JSON reader: enough for the stand-in's state file, nothing more.
 *
 * A document is a tree of `json` nodes that the caller frees with json_free. The getters take a NULL
 * object and answer the default, so that callers chain them without testing each step. Numbers are doubles:
 * whole numbers are exact up to 2^53, more than any byte count here. */
#ifndef STANDIN_JSON_H
#define STANDIN_JSON_H
#include <stdbool.h>
#include <stddef.h>

enum json_type { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

typedef struct json {
  enum json_type type;
  char *key;    /* set for members of an object */
  char *string; /* JSON_STRING */
  double number;
  struct json *child; /* first element or member */
  struct json *next;  /* next sibling */
} json;

/* The tree of `text`, or NULL when it is not JSON. */
json *json_parse(const char *text);
void json_free(json *node);

const json *json_get(const json *object, const char *key);
double json_num(const json *object, const char *key, double fallback);
const char *json_str(const json *object, const char *key, const char *fallback);
bool json_bool(const json *object, const char *key, bool fallback);
/* Elements of an array (or members of an object); 0 for anything else. */
size_t json_len(const json *array);
const json *json_at(const json *array, size_t index);

#endif
