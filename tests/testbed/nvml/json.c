/* See json.h. Recursive descent; depth is bounded so that a broken file cannot overflow the stack. */
#include "json.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 32

struct parser {
  const char *at;
  bool failed;
};

static json *value(struct parser *p, int depth);

static void space(struct parser *p) {
  while (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r') p->at++;
}

static json *node(struct parser *p, enum json_type type) {
  json *made = calloc(1, sizeof *made);
  if (!made) {
    p->failed = true;
    return NULL;
  }
  made->type = type;
  return made;
}

static size_t utf8(unsigned code, char *out) {
  if (code < 0x80) {
    out[0] = (char)code;
    return 1;
  }
  if (code < 0x800) {
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3f));
    return 2;
  }
  out[0] = (char)(0xe0 | code >> 12);
  out[1] = (char)(0x80 | (code >> 6 & 0x3f));
  out[2] = (char)(0x80 | (code & 0x3f));
  return 3;
}

/* A string without its quotes; escapes become UTF-8 (surrogate halves are kept apart: no name here has any). */
static char *text(struct parser *p) {
  if (*p->at != '"') {
    p->failed = true;
    return NULL;
  }
  const char *from = ++p->at;
  while (*p->at && *p->at != '"') p->at += (*p->at == '\\' && p->at[1]) ? 2 : 1;
  if (!*p->at) {
    p->failed = true;
    return NULL;
  }
  char *out = malloc((size_t)(p->at - from) + 1), *to = out;
  if (!out) {
    p->failed = true;
    return NULL;
  }
  for (; from < p->at; from++) {
    if (*from != '\\') {
      *to++ = *from;
      continue;
    }
    switch (*++from) {
      case 'n': *to++ = '\n'; break;
      case 't': *to++ = '\t'; break;
      case 'r': *to++ = '\r'; break;
      case 'b': *to++ = '\b'; break;
      case 'f': *to++ = '\f'; break;
      case 'u': {
        char digits[5] = {0};
        if (p->at - from < 5) {
          p->failed = true;
          free(out);
          return NULL;
        }
        memcpy(digits, from + 1, 4);
        to += utf8((unsigned)strtoul(digits, NULL, 16), to);
        from += 4;
        break;
      }
      default: *to++ = *from;
    }
  }
  *to = 0;
  p->at++;
  return out;
}

static json *list(struct parser *p, enum json_type type, char close, int depth) {
  json *made = node(p, type), **last = made ? &made->child : NULL;
  p->at++;
  for (space(p); made && *p->at != close; space(p)) {
    char *key = NULL;
    if (type == JSON_OBJECT) {
      key = text(p);
      space(p);
      if (p->failed || *p->at++ != ':') {
        free(key);
        p->failed = true;
        break;
      }
    }
    json *element = value(p, depth + 1);
    if (!element) {
      free(key);
      break;
    }
    element->key = key;
    *last = element;
    last = &element->next;
    space(p);
    if (*p->at == ',')
      p->at++;
    else if (*p->at != close)
      p->failed = true;
    if (p->failed) break;
  }
  if (!p->failed && *p->at == close) p->at++;
  return made;
}

static json *value(struct parser *p, int depth) {
  space(p);
  if (depth > MAX_DEPTH) {
    p->failed = true;
    return NULL;
  }
  json *made;
  if (*p->at == '{') return list(p, JSON_OBJECT, '}', depth);
  if (*p->at == '[') return list(p, JSON_ARRAY, ']', depth);
  if (*p->at == '"') {
    char *string = text(p);
    if (!string) return NULL;
    made = node(p, JSON_STRING);
    if (made)
      made->string = string;
    else
      free(string);
    return made;
  }
  static const struct {
    const char *word;
    enum json_type type;
    double number;
  } words[] = {{"true", JSON_BOOL, 1}, {"false", JSON_BOOL, 0}, {"null", JSON_NULL, 0}};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
    size_t length = strlen(words[i].word);
    if (strncmp(p->at, words[i].word, length)) continue;
    p->at += length;
    made = node(p, words[i].type);
    if (made) made->number = words[i].number;
    return made;
  }
  char *end;
  double number = strtod(p->at, &end);
  if (end == p->at) {
    p->failed = true;
    return NULL;
  }
  p->at = end;
  made = node(p, JSON_NUMBER);
  if (made) made->number = number;
  return made;
}

json *json_parse(const char *document) {
  struct parser p = {.at = document};
  json *made = value(&p, 0);
  space(&p);
  if (p.failed || *p.at) {
    json_free(made);
    return NULL;
  }
  return made;
}

void json_free(json *node) {
  while (node) {
    json *next = node->next;
    json_free(node->child);
    free(node->key);
    free(node->string);
    free(node);
    node = next;
  }
}

const json *json_get(const json *object, const char *key) {
  if (!object || object->type != JSON_OBJECT) return NULL;
  for (const json *member = object->child; member; member = member->next)
    if (member->key && !strcmp(member->key, key)) return member;
  return NULL;
}

double json_num(const json *object, const char *key, double fallback) {
  const json *found = json_get(object, key);
  return found && (found->type == JSON_NUMBER || found->type == JSON_BOOL) ? found->number : fallback;
}

const char *json_str(const json *object, const char *key, const char *fallback) {
  const json *found = json_get(object, key);
  return found && found->type == JSON_STRING ? found->string : fallback;
}

bool json_bool(const json *object, const char *key, bool fallback) {
  return json_num(object, key, fallback) != 0;
}

size_t json_len(const json *array) {
  size_t count = 0;
  if (array)
    for (const json *element = array->child; element; element = element->next) count++;
  return count;
}

const json *json_at(const json *array, size_t index) {
  const json *element = array ? array->child : NULL;
  while (element && index--) element = element->next;
  return element;
}
