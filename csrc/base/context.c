#include "base/context.h"

#include <stdarg.h>
#include <stdio.h>

oq_code oq_fail(oq_context *context, oq_code code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context->error.message, sizeof context->error.message, format, arguments);
    va_end(arguments);
    context->error.code = code;
    return code;
}

oq_code oq_fail_memory(oq_context *context, size_t count, size_t size)
{
    return oq_fail(context, OQ_OUT_OF_MEMORY, "out of memory: %zu elements of %zu bytes", count, size);
}

oq_code oq_check_cancel(oq_context *context)
{
    const bool asked = (context->cancel && *context->cancel) || (context->interrupted && context->interrupted());
    return asked ? oq_fail(context, OQ_CANCELLED, "asked to stop") : OQ_OK;
}
