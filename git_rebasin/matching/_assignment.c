/* Linear assignment by shortest augmenting paths: the compiled half of `git_rebasin.matching.assignment`.

   Given n x n scores, find the permutation that maximises the sum of scores[i, unit[i]]. Rows are
   places and columns are units. Every column has a price, and a pair has the slack

       slack(i, j) = price[j] - score[i, j].

   Invariant: a matched row has the column of its least slack. Once all rows are matched no other
   permutation has a smaller sum of slacks; that sum is the sum of all prices, which is the same for
   every permutation, minus the value. So the value is the largest, and the prices prove it.

   1. Column reduction. The price of a column is its largest score, and the row with that score has
      the column, if it has none yet.
   2. Augmenting row reduction. A row without a column takes the one of its least slack, raises the
      price until its second choice is as good, and drives out the row that was there.
   3. Augmentation. For each row still left, Dijkstra's algorithm over slacks finds the cheapest
      chain of exchanges that ends at a column without a row.

   A warm start takes the place of step 1: the permutation and prices of a problem that was much the
   same. A row whose column has not the least slack any more loses it, and steps 2 and 3 give it
   another.

   R. Jonker, A. Volgenant, "A shortest augmenting path algorithm for dense and sparse linear
   assignment problems", Computing 38, 1987. D. F. Crouse, "On implementing 2D rectangular
   assignment algorithms", IEEE Transactions on Aerospace and Electronic Systems 52, 2016.

   Scores in float32 are solved in float32, where a register holds twice as many numbers, and then
   repaired in float64: rows whose column has not the least slack in float64 lose it, and step 3
   gives them another, in few steps as the prices are almost right. What float32 rounds away thus
   costs time and never quality.

   The loops over columns have no branches and work on blocks of constant size, and so compilers
   vectorise them. The width of the registers does not change the answer: no numbers are summed up
   over columns, and of equals the lowest index is taken.

   Scores, and what a warm start is given, are copied as they are checked, as other threads may
   write to the caller's arrays meanwhile. A row is copied when it is first read, so that the copy
   costs little: it is in the cache. */

#ifndef SCORE /* ------------------------------------------------------------ what is there once */

#include "../_native.h"
#include <stdlib.h>

#if defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

enum {
    BLOCK = 64,  /* columns; of every block the least distance is kept, so a search reads one */
    ROUNDS = 4,  /* times n: how often augmenting row reduction may look at a row */
    ALIGN = 64   /* bytes of a cache line */
};

typedef int32_t index_t;

typedef struct { /* who has whom, and the notes of a search; all of length n */
    index_t n;
    index_t *unit;    /* the column of every row, or -1 */
    index_t *place;   /* the row of every column, or -1 */
    index_t *from;    /* the row that a column is reached from */
    index_t *reached; /* the columns that the search has reached, in their order */
    index_t *todo;    /* rows without a column */
    double *start;    /* the prices of a warm start */
} matching;

static char *take(char **memory, size_t bytes)
{
    char *start = *memory;
    *memory += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return start;
}

static matching new_matching(char **memory, index_t n)
{
    size_t bytes = (size_t)n * sizeof(index_t);
    matching m = {n, NULL, NULL, NULL, NULL, NULL, NULL};
    m.unit = (index_t *)take(memory, bytes);
    m.place = (index_t *)take(memory, bytes);
    m.from = (index_t *)take(memory, bytes);
    m.reached = (index_t *)take(memory, bytes);
    m.todo = (index_t *)take(memory, bytes);
    m.start = (double *)take(memory, (size_t)n * sizeof(double));
    return m;
}

#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(function) JOIN(function, SCORE, WORK)

#define SCORE double
#define WORK double
#define BITS int64_t
#include "_assignment.c"

#define SCORE float
#define WORK float
#define BITS int32_t
#include "_assignment.c"

#define SCORE float
#define WORK double
#define BITS int32_t
#include "_assignment.c"

/* The bytes that the problems of one size need, one after the other: the scores of one, and at most
   5 arrays of indices, 5 of floats and 6 of doubles, each rounded up to a cache line. */
static size_t bytes_needed(size_t n, size_t itemsize)
{
    size_t arrays = 5 * (n * 4 + ALIGN) + 5 * (n * 4 + ALIGN) + 6 * (n * 8 + ALIGN);
    return ALIGN + n * n * itemsize + ALIGN + arrays;
}

/* Solve one problem. Where there are prices, they are replaced by those of the solution; if `warm`,
   they and the permutation are those of a problem that was much the same. */
static int solve_float(char *memory, const float *score, index_t n, index_t *out, double *price,
                       int warm)
{
    matching m = new_matching(&memory, n);
    float *own = (float *)take(&memory, (size_t)n * (size_t)n * sizeof *own);
    state_float_float narrow = new_state_float_float(&memory, score, own, n);
    state_float_double wide = new_state_float_double(&memory, score, own, n);
    if (!(warm && resume_float_float(&m, &narrow, out, price)) &&
        !reduce_columns_float_float(&m, &narrow))
        return 0;
    match_float_float(&m, &narrow);
    for (index_t j = 0; j < n; j++) wide.price[j] = narrow.price[j];
    repair_float_double(&m, &wide);
    finish_float_double(&m, &wide, out, price);
    return 1;
}

static int solve_double(char *memory, const double *score, index_t n, index_t *out, double *price,
                        int warm)
{
    matching m = new_matching(&memory, n);
    double *own = (double *)take(&memory, (size_t)n * (size_t)n * sizeof *own);
    state_double_double state = new_state_double_double(&memory, score, own, n);
    if (!(warm && resume_double_double(&m, &state, out, price)) &&
        !reduce_columns_double_double(&m, &state))
        return 0;
    match_double_double(&m, &state);
    finish_double_double(&m, &state, out, price);
    return 1;
}

/* Solve problems one after the other; returns how many, before one that is refused or the end. */
static Py_ssize_t solve_all(char *memory, const Py_buffer *scores, const Py_buffer *out,
                            const Py_buffer *prices, int warm)
{
    Py_ssize_t count = scores->shape[0], n = scores->shape[1], k = 0;
    uintptr_t address = (uintptr_t)memory;
    memory += (ALIGN - address % ALIGN) % ALIGN;
    for (; k < count; k++) {
        const char *score = (const char *)scores->buf + (size_t)k * n * n * scores->itemsize;
        index_t *unit = (index_t *)out->buf + (size_t)k * n;
        double *price = prices->buf ? (double *)prices->buf + (size_t)k * n : NULL;
        if (!(scores->itemsize == 4
                  ? solve_float(memory, (const float *)score, (index_t)n, unit, price, warm)
                  : solve_double(memory, (const double *)score, (index_t)n, unit, price, warm)))
            break;
    }
    return k;
}

/* ---- Python */

static int check(const Py_buffer *scores, const Py_buffer *out, const Py_buffer *prices)
{
    if (!has_format(scores, "f", 4) && !has_format(scores, "d", 8)) {
        PyErr_SetString(PyExc_TypeError, "scores must be an array of float32 or float64");
        return 0;
    }
    if (!has_format(out, SIGNED, 4)) {
        PyErr_SetString(PyExc_TypeError, "out must be an array of int32");
        return 0;
    }
    if (scores->ndim != 3 || scores->shape[1] != scores->shape[2]) {
        PyErr_SetString(PyExc_ValueError, "scores must have the shape (problems, n, n)");
        return 0;
    }
    if (out->ndim != 2 || out->shape[0] != scores->shape[0] || out->shape[1] != scores->shape[1]) {
        PyErr_SetString(PyExc_ValueError, "out must have the shape (problems, n)");
        return 0;
    }
    if (prices->buf && !has_format(prices, "d", 8)) {
        PyErr_SetString(PyExc_TypeError, "prices must be an array of float64");
        return 0;
    }
    if (prices->buf && (prices->ndim != 2 || prices->shape[0] != scores->shape[0] ||
                        prices->shape[1] != scores->shape[1])) {
        PyErr_SetString(PyExc_ValueError, "prices must have the shape (problems, n)");
        return 0;
    }
    if (scores->shape[1] > INT32_MAX / (2 * ROUNDS)) {
        PyErr_SetString(PyExc_ValueError, "the scores have too many columns");
        return 0;
    }
    if (!is_aligned(scores) || !is_aligned(out) || !is_aligned(prices)) {
        PyErr_SetString(PyExc_ValueError, "an array is not aligned to its items: copy it");
        return 0;
    }
    if (overlap(scores, out) || overlap(scores, prices) || overlap(out, prices)) {
        PyErr_SetString(PyExc_ValueError, "scores, out and prices share memory: copy one of them");
        return 0;
    }
    return 1;
}

static PyObject *solve(PyObject *module, PyObject *args)
{
    PyObject *given, *wanted, *priced = Py_None, *result = NULL;
    Py_buffer scores = {0}, out = {0}, prices = {0};
    int warm = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO|Op:solve", &given, &wanted, &priced, &warm)) return NULL;
    if (borrow(given, &scores, 0) && borrow(wanted, &out, 1) &&
        (priced == Py_None || borrow(priced, &prices, 1)) && check(&scores, &out, &prices)) {
        Py_ssize_t solved = scores.shape[0]; /* problems without a score are */
        char *memory = NULL;
        if (scores.len > 0)
            memory = malloc(bytes_needed((size_t)scores.shape[1], (size_t)scores.itemsize));
        if (scores.len > 0 && !memory) {
            PyErr_NoMemory();
        } else {
            Py_BEGIN_ALLOW_THREADS
            if (memory) solved = solve_all(memory, &scores, &out, &prices, warm && prices.buf);
            Py_END_ALLOW_THREADS
            free(memory);
            result = PyLong_FromSsize_t(solved);
        }
    }
    PyBuffer_Release(&prices); /* without effect on one that was not got */
    PyBuffer_Release(&out);
    PyBuffer_Release(&scores);
    return result;
}

static PyMethodDef methods[] = {
    {"solve", solve, METH_VARARGS,
     "solve(scores, out, prices=None, warm=False)\n--\n\n"
     "Write to out[k], of int32, the permutation of the largest sum of scores[k, i, out[k, i]],\n"
     "and to prices[k], of float64, the prices of its units that prove it. If warm, both are read\n"
     "before: as the solution of problems that were much the same.\n\n"
     "Returns how many problems are solved: all, or those before the first that is not finite or\n"
     "has its largest magnitude outside of 2**-60 to 2**60 (float32) or 2**-500 to 2**500\n"
     "(float64)."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_assignment",
    "Linear assignment by shortest augmenting paths, without the interpreter's lock.",
    0,
    methods,
    NULL,
    NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__assignment(void) { return PyModuleDef_Init(&definition); }

#else /* -------------------------------------- what is there for every pair of SCORE and WORK */

/* More than any distance, and so much more that `FAR - score` is FAR: within LARGE, the largest
   score, prices stay below n * LARGE. */
#define FAR (sizeof(WORK) == 4 ? (WORK)0x1p123f : (WORK)0x1p1000)
#define LARGE (sizeof(SCORE) == 4 ? (SCORE)0x1p60f : (SCORE)0x1p500)
#define SMALL (sizeof(SCORE) == 4 ? (SCORE)0x1p-60f : (SCORE)0x1p-500)

typedef struct { /* of the columns */
    index_t n, blocks;
    const SCORE *given; /* the caller's, which others may write to */
    SCORE *score;       /* its rows as they were when they were checked */
    WORK *price;
    WORK *open; /* the price too, but FAR for columns that the search has reached */
    WORK *dist; /* the distance from the row in hand, but FAR for columns reached */
    WORK *low;  /* the least distance in every block */
    WORK *when; /* the distances of the columns in `reached` */
} NAME(state);

static NAME(state) NAME(new_state)(char **memory, const SCORE *given, SCORE *score, index_t n)
{
    size_t bytes = (size_t)n * sizeof(WORK);
    NAME(state) s = {n, (n + BLOCK - 1) / BLOCK, given, score, NULL, NULL, NULL, NULL, NULL};
    s.price = (WORK *)take(memory, bytes);
    s.open = (WORK *)take(memory, bytes);
    s.dist = (WORK *)take(memory, bytes);
    s.low = (WORK *)take(memory, bytes);
    s.when = (WORK *)take(memory, bytes);
    return s;
}

INLINE const SCORE *NAME(row)(const NAME(state) *s, index_t i)
{
    return s->score + (size_t)i * (size_t)s->n;
}

/* A row, copied. */
INLINE const SCORE *NAME(fetch)(NAME(state) *s, index_t i)
{
    size_t start = (size_t)i * (size_t)s->n;
    return memcpy(s->score + start, s->given + start, (size_t)s->n * sizeof(SCORE));
}

/* ---- loops over columns */

/* A magnitude, read as an integer, as that puts infinities and NaN last. */
INLINE BITS NAME(bits)(const SCORE *value)
{
    BITS bits;
    memcpy(&bits, value, sizeof bits);
    return bits & (sizeof bits == 4 ? (BITS)INT32_MAX : (BITS)INT64_MAX); /* no sign */
}

/* The largest magnitude. */
VECTORISED BITS NAME(magnitude)(const SCORE *restrict value, index_t n)
{
    BITS top = 0;
    for (index_t j = 0; j < n; j++) {
        BITS bits = NAME(bits)(value + j);
        top = bits > top ? bits : top;
    }
    return top;
}

/* Raise prices to the scores of a row, and note for whom. Returns the magnitude of the scores. */
VECTORISED BITS NAME(bid)(const SCORE *restrict score, WORK *restrict price,
                          index_t *restrict place, index_t i, index_t n)
{
    BITS top = 0;
    for (index_t j = 0; j < n; j++) {
        BITS bits = NAME(bits)(score + j);
        WORK value = (WORK)score[j], old = price[j];
        top = bits > top ? bits : top;
        place[j] = value > old ? i : place[j];
        price[j] = value > old ? value : old;
    }
    return top;
}

INLINE WORK NAME(look_block)(const SCORE *restrict score, const WORK *restrict price,
                             WORK *restrict dist, index_t count)
{
    WORK least = FAR;
    for (index_t j = 0; j < count; j++) {
        WORK slack = price[j] - (WORK)score[j];
        dist[j] = slack;
        least = slack < least ? slack : least;
    }
    return least;
}

/* The distance of every column from a row: its slack. */
VECTORISED void NAME(look)(const SCORE *restrict score, const WORK *restrict price,
                           WORK *restrict dist, WORK *restrict low, index_t n)
{
    index_t j = 0;
    for (; j + BLOCK <= n; j += BLOCK)
        *low++ = NAME(look_block)(score + j, price + j, dist + j, BLOCK);
    if (j < n) *low = NAME(look_block)(score + j, price + j, dist + j, n - j);
}

INLINE WORK NAME(relax_block)(const SCORE *restrict score, const WORK *restrict price,
                              WORK *restrict dist, index_t *restrict from, index_t i, WORK base,
                              index_t count)
{
    WORK least = FAR;
    for (index_t j = 0; j < count; j++) {
        WORK through = base + (price[j] - (WORK)score[j]), old = dist[j];
        from[j] = through < old ? i : from[j];
        through = through < old ? through : old;
        dist[j] = through;
        least = through < least ? through : least;
    }
    return least;
}

/* Shorten the distances by way of row i, which is `base` away with the slack of its column off. */
VECTORISED void NAME(relax)(const SCORE *restrict score, const WORK *restrict price,
                            WORK *restrict dist, index_t *restrict from, WORK *restrict low,
                            index_t i, WORK base, index_t n)
{
    index_t j = 0;
    for (; j + BLOCK <= n; j += BLOCK)
        *low++ = NAME(relax_block)(score + j, price + j, dist + j, from + j, i, base, BLOCK);
    if (j < n) *low = NAME(relax_block)(score + j, price + j, dist + j, from + j, i, base, n - j);
}

/* The lowest column from `start` at the distance `least`, plus n if a row has it; else 2 n. */
VECTORISED index_t NAME(locate)(const WORK *restrict dist, const index_t *restrict place,
                                WORK least, index_t start, index_t stop, index_t n)
{
    index_t best = 2 * n;
    for (index_t j = start; j < stop; j++) {
        index_t rank = place[j] < 0 ? j : j + n;
        rank = dist[j] == least ? rank : 2 * n;
        best = rank < best ? rank : best;
    }
    return best;
}

/* ---- searches */

INLINE WORK NAME(least)(const WORK *value, index_t count)
{
    WORK least = FAR;
    for (index_t k = 0; k < count; k++) least = value[k] < least ? value[k] : least;
    return least;
}

/* The nearest column; of several the lowest, but one without a row before all others. */
static index_t NAME(nearest)(const matching *m, const NAME(state) *s)
{
    index_t n = s->n, best = 2 * n;
    WORK least = NAME(least)(s->low, s->blocks);
    for (index_t b = 0; b < s->blocks && best >= n; b++) {
        if (s->low[b] != least) continue;
        index_t start = b * BLOCK, stop = start + BLOCK < n ? start + BLOCK : n;
        index_t found = NAME(locate)(s->dist, m->place, least, start, stop, n);
        best = found < best ? found : best;
    }
    return best < n ? best : best - n;
}

/* Find a column for a row by the cheapest chain of exchanges. */
static void NAME(augment)(matching *m, NAME(state) *s, index_t row)
{
    index_t n = s->n, count = 0, column;
    WORK least;
    NAME(look)(NAME(row)(s, row), s->price, s->dist, s->low, n);
    for (index_t j = 0; j < n; j++) m->from[j] = row;
    for (;;) {
        column = NAME(nearest)(m, s);
        least = s->dist[column];
        if (m->place[column] < 0) break;
        m->reached[count] = column;
        s->when[count++] = least;
        s->open[column] = s->dist[column] = FAR;
        index_t i = m->place[column];
        const SCORE *score = NAME(row)(s, i);
        WORK base = least - (s->price[column] - (WORK)score[column]);
        NAME(relax)(score, s->open, s->dist, m->from, s->low, i, base, n);
    }
    for (index_t k = 0; k < count; k++) {
        index_t j = m->reached[k];
        s->open[j] = s->price[j] += least - s->when[k];
    }
    for (index_t i = -1; i != row;) {
        i = m->from[column];
        index_t left = m->unit[i];
        m->place[column] = i;
        m->unit[i] = column;
        column = left;
    }
}

static void NAME(augment_all)(matching *m, NAME(state) *s, index_t count)
{
    memcpy(s->open, s->price, (size_t)s->n * sizeof(WORK));
    for (index_t k = 0; k < count; k++) NAME(augment)(m, s, m->todo[k]);
}

/* ---- the steps */

/* Whether scores of such a magnitude are finite and can be computed with. */
static inline int NAME(in_range)(BITS top)
{
    BITS large, small;
    SCORE bounds[2] = {LARGE, SMALL};
    memcpy(&large, &bounds[0], sizeof large);
    memcpy(&small, &bounds[1], sizeof small);
    return top <= large && (top == 0 || top >= small);
}

/* Step 1. Returns whether all scores are finite and of a size that can be computed with. */
static inline int NAME(reduce_columns)(matching *m, NAME(state) *s)
{
    index_t n = s->n;
    BITS top = 0;
    for (index_t j = 0; j < n; j++) {
        s->price[j] = -FAR;
        m->place[j] = 0;
        m->unit[j] = -1;
    }
    for (index_t i = 0; i < n; i++) {
        BITS bits = NAME(bid)(NAME(fetch)(s, i), s->price, m->place, i, n);
        top = bits > top ? bits : top;
    }
    if (!NAME(in_range)(top)) return 0;
    for (index_t j = n - 1; j >= 0; j--) {
        index_t i = m->place[j];
        if (m->unit[i] < 0)
            m->unit[i] = j;
        else
            m->place[j] = -1;
    }
    return 1;
}

/* Step 2, for one row, the row that it drives out, and so on. Returns the row that is left, or -1
   if none is. A price that rounding keeps where it is would let two rows take turns for ever. */
static index_t NAME(reduce_row)(matching *m, NAME(state) *s, index_t i, index_t *looks)
{
    index_t n = s->n;
    while (i >= 0 && *looks > 0) {
        --*looks;
        NAME(look)(NAME(row)(s, i), s->price, s->dist, s->low, n);
        index_t j = NAME(nearest)(m, s), start = j / BLOCK * BLOCK, other = m->place[j];
        WORK first = s->dist[j], before = s->price[j];
        s->dist[j] = FAR;
        s->low[j / BLOCK] = NAME(least)(s->dist + start, start + BLOCK < n ? BLOCK : n - start);
        WORK after = before + (NAME(least)(s->low, s->blocks) - first);
        if (other >= 0 && !(after > before)) break;
        s->price[j] = after;
        m->place[j] = i;
        m->unit[i] = j;
        if (other >= 0) m->unit[other] = -1;
        i = other;
    }
    return i;
}

/* Steps 2 and 3. */
static inline void NAME(match)(matching *m, NAME(state) *s)
{
    index_t n = s->n, rows = 0, count = 0, looks = ROUNDS * n;
    for (index_t i = 0; i < n; i++)
        if (m->unit[i] < 0) m->todo[rows++] = i;
    for (index_t k = 0; k < rows; k++) {
        index_t i = NAME(reduce_row)(m, s, m->todo[k], &looks);
        if (i >= 0) m->todo[count++] = i;
    }
    NAME(augment_all)(m, s, count);
}

/* Take from rows the columns that have not their least slack. Returns how many rows `todo` has. */
static inline index_t NAME(release)(matching *m, NAME(state) *s)
{
    index_t count = 0;
    for (index_t i = 0; i < s->n; i++) {
        index_t j = m->unit[i];
        NAME(look)(NAME(row)(s, i), s->price, s->dist, s->low, s->n);
        if (s->dist[j] > NAME(least)(s->low, s->blocks)) {
            m->place[j] = m->unit[i] = -1;
            m->todo[count++] = i;
        }
    }
    return count;
}

/* Make a matching one of best pairs again, for other prices or more digits of them. */
static inline void NAME(repair)(matching *m, NAME(state) *s)
{
    NAME(augment_all)(m, s, NAME(release)(m, s));
}

/* A warm start, in place of step 1. Returns whether it was taken: if the scores are in range,
   `unit` is a permutation, the prices are not so much larger than the scores that digits would be
   lost, and half of the rows keep their column, as otherwise step 1 is the quicker start. */
static inline int NAME(resume)(matching *m, NAME(state) *s, const index_t *unit,
                               const double *price)
{
    index_t n = s->n;
    BITS top = 0;
    const double *start = memcpy(m->start, price, (size_t)n * sizeof *start);
    int64_t most = magnitude_double_double(start, n);
    SCORE score;
    double largest;
    for (index_t i = 0; i < n; i++) {
        BITS bits = NAME(magnitude)(NAME(fetch)(s, i), n);
        top = bits > top ? bits : top;
    }
    memcpy(&score, &top, sizeof score);
    memcpy(&largest, &most, sizeof largest);
    if (!NAME(in_range)(top) || !in_range_double_double(most) || largest > 8.0 * (double)score)
        return 0;
    for (index_t j = 0; j < n; j++) {
        s->price[j] = (WORK)start[j];
        m->place[j] = -1;
    }
    for (index_t i = 0; i < n; i++) {
        index_t j = m->unit[i] = read_once(unit, i);
        if (j < 0 || j >= n || m->place[j] >= 0) return 0;
        m->place[j] = i;
    }
    return NAME(release)(m, s) <= n / 2;
}

/* The result: the permutation, and the prices that prove it. */
static inline void NAME(finish)(const matching *m, const NAME(state) *s, index_t *unit,
                                double *price)
{
    memcpy(unit, m->unit, (size_t)s->n * sizeof(index_t));
    if (!price) return;
    for (index_t j = 0; j < s->n; j++) price[j] = (double)s->price[j];
}

#undef FAR
#undef LARGE
#undef SMALL
#undef SCORE
#undef WORK
#undef BITS
#endif
