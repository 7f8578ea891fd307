/* Columns of a matrix in another order: the compiled half of `git_rebasin.symmetry.gather`.

   numpy's `take` along the last axis copies every element by a call of its own. Here a row, which
   the cache holds, is read by one loop that compilers vectorise. Elements are moved as they are, so
   that only their size counts. */

#include "../_native.h"

#define COPY(name, type)                                                             \
    VECTORISED void name(const type *restrict from, const int32_t *restrict index,   \
                         type *restrict to, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t m) \
    {                                                                                \
        for (Py_ssize_t i = 0; i < rows; i++, from += n, to += m)                    \
            for (Py_ssize_t j = 0; j < m; j++) to[j] = from[index[j]];               \
    }
COPY(copy_of_2_bytes, uint16_t)
COPY(copy_of_4_bytes, uint32_t)

/* Whether the items of both are numbers of 16 or 32 bits, and of one kind. */
static int same_kind(const Py_buffer *one, const Py_buffer *other)
{
    static const char *kinds[] = {"e", "H", "f", "IL"};
    for (int k = 0; k < 4; k++) {
        Py_ssize_t size = k < 2 ? 2 : 4;
        if (has_format(one, kinds[k], size)) return has_format(other, kinds[k], size);
    }
    return 0;
}

/* Whether the three buffers are of the right types and fit together; else an error is set. */
static int check(const Py_buffer *from, const Py_buffer *index, const Py_buffer *to)
{
    int typed = same_kind(from, to) && has_format(index, SIGNED, 4);
    if (!typed || from->ndim != 2 || index->ndim != 1 || to->ndim != 2) {
        PyErr_SetString(PyExc_TypeError,
                        "take_columns wants two matrices of float32 or float16, or of the bits of "
                        "such numbers, and int32 indices between them, in the byte order of the "
                        "machine");
        return 0;
    }
    if (to->shape[0] != from->shape[0] || to->shape[1] != index->shape[0]) {
        PyErr_SetString(PyExc_ValueError, "`to` needs the rows of `from`, one column an index");
        return 0;
    }
    if (!is_aligned(from) || !is_aligned(index) || !is_aligned(to)) {
        PyErr_SetString(PyExc_ValueError, "an array is not aligned to its items: copy it");
        return 0;
    }
    if (overlap(to, from) || overlap(to, index)) {
        PyErr_SetString(PyExc_ValueError, "`to` shares memory with `from` or `index`: copy one");
        return 0;
    }
    return 1;
}

/* A copy of the indices, each within the columns of `from`; NULL where an error is set. */
static int32_t *checked_indices(const Py_buffer *index, Py_ssize_t n)
{
    Py_ssize_t m = index->shape[0];
    int32_t *copy = PyMem_Malloc((size_t)m * sizeof *copy);
    if (!copy) PyErr_NoMemory();
    for (Py_ssize_t j = 0; copy && j < m; j++) {
        int32_t k = copy[j] = read_once(index->buf, j);
        if (k >= 0 && k < n) continue;
        PyErr_Format(PyExc_IndexError, "index %d is out of bounds for %zd columns", (int)k, n);
        PyMem_Free(copy);
        copy = NULL;
    }
    return copy;
}

static PyObject *take_columns(PyObject *module, PyObject *args)
{
    PyObject *given[3], *result = NULL;
    Py_buffer from = {0}, index = {0}, to = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "OOO:take_columns", &given[0], &given[1], &given[2])) return NULL;
    if (borrow(given[0], &from, 0) && borrow(given[1], &index, 0) && borrow(given[2], &to, 1) &&
        check(&from, &index, &to)) {
        int32_t *checked = checked_indices(&index, from.shape[1]);
        if (checked && to.len > 0) { /* rows without an entry may be very many */
            Py_ssize_t rows = from.shape[0], n = from.shape[1], m = to.shape[1];
            Py_BEGIN_ALLOW_THREADS
            if (from.itemsize == 2)
                copy_of_2_bytes(from.buf, checked, to.buf, rows, n, m);
            else
                copy_of_4_bytes(from.buf, checked, to.buf, rows, n, m);
            Py_END_ALLOW_THREADS
        }
        if (checked) result = Py_NewRef(Py_None);
        PyMem_Free(checked);
    }
    PyBuffer_Release(&to); /* without effect on one that was not got */
    PyBuffer_Release(&index);
    PyBuffer_Release(&from);
    return result;
}

static PyMethodDef methods[] = {
    {"take_columns", take_columns, METH_VARARGS,
     "take_columns(from, index, to)\n--\n\n"
     "Write to[i, j] = from[i, index[j]]; matrices of float32 or float16, or of the bits of such\n"
     "numbers (uint32, uint16), and int32 indices. `to` may share no memory with them."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_gather", "Columns of a matrix in another order.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__gather(void) { return PyModuleDef_Init(&definition); }
