#include "calibrate/learnables.h"

#include <stdio.h>
#include <string.h>

static int add(oq_learnables *list, oq_learnable_kind kind, int owner, const char *owner_name, const char *what,
               int rank, const int64_t shape[3])
{
    oq_learnable *e = &list->entry[list->entries];
    *e = (oq_learnable){.kind = kind, .owner = owner, .offset = list->total, .count = 1, .rank = rank};
    snprintf(e->name, sizeof e->name, "%s.%s", owner_name, what);
    for (int i = 0; i < rank; i++) {
        e->shape[i] = shape[i];
        e->count *= shape[i];
    }
    list->total += e->count;
    return list->entries++;
}

static int add_map(oq_learnables *list, int site, const char *name, oq_map_kind kind, oq_affine geometry)
{
    const int64_t blocks = geometry.blocks, n = geometry.width;
    switch (kind) {
    case OQ_MAP_NONE: return -1;
    case OQ_MAP_DIAGONAL: return add(list, OQ_SITE_MAP, site, name, "map", 2, (int64_t[3]){blocks, n});
    case OQ_MAP_TIED: return add(list, OQ_SITE_MAP, site, name, "map", 2, (int64_t[3]){blocks, n / 2});
    case OQ_MAP_ROTATION: return add(list, OQ_SITE_MAP, site, name, "map", 3, (int64_t[3]){2, blocks, n / 2});
    case OQ_MAP_DENSE: break;
    }
    return add(list, OQ_SITE_MAP, site, name, "map", 3, (int64_t[3]){blocks, n, n});
}

/* Behind everything else. */
static int add_offset(oq_learnables *list, const oq_options *options, int linear, const char *name,
                      const int64_t shape[2])
{
    if (options->rounding != OQ_ROUNDING_LEARNED || !oq_quantizes(options, linear)) return -1;
    return add(list, OQ_OFFSET, linear, name, "offset", 2, (int64_t[3]){shape[0], shape[1]});
}

void oq_learnables_list(const oq_block_spec *spec, const oq_options *options, const oq_block_weights *weights,
                        oq_learnables *list)
{
    memset(list, 0, sizeof *list);
    for (int i = 0; i < OQ_LINEARS; i++) {
        list->lwc_max[i] = list->lwc_min[i] = -1;
        if (!options->lwc || !oq_has_linear(spec, i) || !oq_quantizes(options, i)) continue;
        const oq_linear_shape shape = oq_shape_of(spec, i);
        const int64_t group = oq_group_within(oq_scheme_of(options, i).group_size, shape.in);
        const int64_t size[3] = {shape.out, (shape.in + group - 1) / group};
        list->lwc_max[i] = add(list, OQ_LWC_MAX, i, oq_linear_names[i], "lwc_max", 2, size);
        list->lwc_min[i] = add(list, OQ_LWC_MIN, i, oq_linear_names[i], "lwc_min", 2, size);
    }
    for (int site = 0; site < OQ_SITES; site++) {
        const oq_affine geometry = oq_site_geometry(spec, site);
        const int64_t size[3] = {geometry.blocks, geometry.width};
        list->map[site] = add_map(list, site, oq_site_names[site], oq_map_at(spec, options, site), geometry);
        list->shift[site] = -1;
        if (oq_site_has_shift(spec, options, weights, site))
            list->shift[site] = add(list, OQ_SITE_SHIFT, site, oq_site_names[site], "shift", 2, size);
    }
    for (int i = 0; i < OQ_INPUTS; i++) {
        const bool learned = options->lac && oq_is_quantized(options->activation.x) &&
                             (i != OQ_INPUT_NORM2 || oq_has_norm(spec, OQ_NORM2));
        list->lac[i] = learned ? add(list, OQ_LAC, i, oq_input_names[i], "lac", 1, (int64_t[3]){2}) : -1;
    }
    list->adaptive = list->total;
    for (int i = 0; i < OQ_LINEARS; i++) {
        const oq_linear_shape shape = oq_shape_of(spec, i);
        list->offset[i] = -1;
        if (oq_has_linear(spec, i))
            list->offset[i] =
                add_offset(list, options, i, oq_linear_names[i], (int64_t[2]){shape.out, shape.in});
    }
}

void oq_learnables_of_layer(int64_t out, int64_t in, const oq_options *options, oq_learnables *list)
{
    const oq_scheme scheme = oq_scheme_of(options, 0);
    const int64_t group = oq_group_within(scheme.group_size, in);
    const int64_t size[3] = {out, group ? (in + group - 1) / group : 0};
    const oq_map_kind kind = options->map[OQ_SITE_NORM1];
    memset(list, 0, sizeof *list);
    for (int i = 0; i < OQ_LINEARS; i++) list->lwc_max[i] = list->lwc_min[i] = list->offset[i] = -1;
    for (int i = 0; i < OQ_SITES; i++) list->map[i] = list->shift[i] = -1;
    for (int i = 0; i < OQ_INPUTS; i++) list->lac[i] = -1;
    if (options->lwc && oq_is_quantized(scheme.quantizer)) {
        list->lwc_max[0] = add(list, OQ_LWC_MAX, 0, "weight", "lwc_max", 2, size);
        list->lwc_min[0] = add(list, OQ_LWC_MIN, 0, "weight", "lwc_min", 2, size);
    }
    list->map[0] = add_map(list, 0, "input", kind, (oq_affine){.blocks = 1, .width = in});
    if (options->shift && kind != OQ_MAP_NONE)
        list->shift[0] = add(list, OQ_SITE_SHIFT, 0, "input", "shift", 2, (int64_t[3]){1, in});
    list->adaptive = list->total;
    list->offset[0] = add_offset(list, options, 0, "weight", (int64_t[2]){out, in});
}
